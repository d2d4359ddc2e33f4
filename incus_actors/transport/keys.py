"""The CURVE key pair of a member: made at first start, kept in its directory.

Owns `transport.key` (secret, 0600) and `transport.pub`; used by the daemon and the lanes. Must never log or return
the secret as text for people, and never overwrite a key that is there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

SECRET_FILE = "transport.key"  # noqa: S105 - a file name
PUBLIC_FILE = "transport.pub"
KEY_BYTES = 32


class KeyFileError(Exception):
    """The key file is damaged; a member without its key is a stranger to the others."""


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A key pair, raw bytes."""

    public: bytes
    secret: bytes = field(repr=False)

    @property
    def public_hex(self) -> str:
        """The public key as it stands in PeerAddress: 64 hexadecimal digits."""
        return self.public.hex()


def generate_curve_keys() -> CurveKeys:
    """Return a new key pair."""
    public, secret = zmq.curve_keypair()
    return CurveKeys(z85.decode(public), z85.decode(secret))


def load_or_create_curve_keys(directory: Path) -> CurveKeys:
    """Return the key pair kept in `directory`, made now if there is none.

    The secret is durable before it is used, is created with mode 0600, and is put back to it. Raises KeyFileError if
    the file is no key, OSError.
    """
    path = directory / SECRET_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        keys = generate_curve_keys()
        _write(path, keys.secret.hex(), 0o600)
        _write(directory / PUBLIC_FILE, keys.public_hex, 0o644)
        return keys
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    try:
        secret = bytes.fromhex(text.decode().strip())
        if len(secret) != KEY_BYTES:
            raise ValueError("wrong length")
        public = z85.decode(zmq.curve_public(z85.encode(secret)))
    except (ValueError, zmq.ZMQError) as error:
        raise KeyFileError(f"{path} does not hold a key; restore it from a backup, or remove and join again") from error
    keys = CurveKeys(public, secret)
    public_path = directory / PUBLIC_FILE
    if not public_path.exists():
        _write(public_path, keys.public_hex, 0o644)
    return keys


def _write(path: Path, text: str, mode: int) -> None:
    """Put a whole file in place at once, durably."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.write(fd, f"{text}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
