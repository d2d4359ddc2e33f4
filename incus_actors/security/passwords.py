"""Passwords are kept as scrypt hashes (OWASP's parameters), never as they are.

Owns the text form `scrypt$<log2 n>$<r>$<p>$<salt>$<hash>` and the comparison. Pure and slow on purpose (about 0.2 s and
32 MiB each): call it in a thread. Must never see a log.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

MAX_BYTES: Final = 1024
_LOG2_N, _R, _P = 15, 8, 3
_SALT_BYTES, _HASH_BYTES = 16, 32


def hash_password(password: str) -> str:
    """Return what may be stored. Raises ValueError if it is empty or longer than MAX_BYTES."""
    raw = password.encode()
    if not 0 < len(raw) <= MAX_BYTES:
        raise ValueError(f"a password has from 1 to {MAX_BYTES} bytes")
    salt = os.urandom(_SALT_BYTES)
    derived = Scrypt(salt=salt, length=_HASH_BYTES, n=1 << _LOG2_N, r=_R, p=_P).derive(raw)
    return "$".join(["scrypt", str(_LOG2_N), str(_R), str(_P), _text(salt), _text(derived)])


def is_password(password: str, stored: str) -> bool:
    """Return whether `stored` was made of `password`; False for anything that was not made by `hash_password`."""
    raw = password.encode()
    if not 0 < len(raw) <= MAX_BYTES:
        return False
    try:
        name, log2_n, r, p, salt, expected = stored.split("$")
        wanted = base64.b64decode(expected, validate=True)
        if name != "scrypt" or not wanted or not 0 < int(log2_n) <= 20:
            return False
        derived = Scrypt(
            salt=base64.b64decode(salt, validate=True), length=len(wanted), n=1 << int(log2_n), r=int(r), p=int(p)
        ).derive(raw)
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(derived, wanted)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
