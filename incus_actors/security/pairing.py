"""Two strangers prove to each other that a person has read a code on one screen and typed it at the other.

Owns the code and the proofs; services/discovery.py keeps the sessions. The code is made of both certificates'
fingerprints, the asker's nonce and a secret that never leaves the server that shows it, so it is good for one session
between these two only. It has 40 bits, lives for minutes, and what is sent is derived through scrypt: who listens or
sits in between can't try enough codes while it lives. Pure; `derive` is slow on purpose (about 0.1 s, 32 MiB).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

NONCE_BYTES: Final = 32
CODE_CHARACTERS: Final = 8
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  #: Crockford's base32: nothing that looks like another
_LOOKALIKES: Final = str.maketrans("OIL", "011")
_DOMAIN: Final = b"incus-actors pairing 1\0"


@dataclass(frozen=True, slots=True)
class Transcript:
    """What both sides saw. Fingerprints are 64 hex digits: of the asker's and of the waiting server's certificate."""

    asker: str
    waiting: str
    nonce: str
    session: str

    def digest(self) -> bytes:
        """Return a hash of all of it."""
        fields = (self.asker, self.waiting, self.nonce, self.session)
        joined = b"\0".join(field.encode() for field in fields)
        return hashlib.sha256(_DOMAIN + joined).digest()


def make_code(secret: bytes, transcript: Transcript) -> str:
    """Return the code to show, such as "7K3M-Q9XD"; `secret` is this session's alone."""
    raw = hmac.digest(secret, _DOMAIN + transcript.digest(), "sha256")
    number = int.from_bytes(raw[:8], "big")
    code = "".join(_ALPHABET[(number >> (5 * i)) & 31] for i in range(CODE_CHARACTERS))
    return f"{code[:4]}-{code[4:]}"


def normal_code(typed: str) -> str | None:
    """Return the code as it is meant (small letters, spaces, O for 0), None if it can be none."""
    text = typed.upper().translate(_LOOKALIKES)
    text = "".join(char for char in text if char not in " -\t")
    if len(text) != CODE_CHARACTERS or any(char not in _ALPHABET for char in text):
        return None
    return f"{text[:4]}-{text[4:]}"


def derive(code: str, transcript: Transcript) -> bytes:
    """Return the key that both sides have if they have the same code and saw the same things."""
    return Scrypt(salt=transcript.digest(), length=32, n=1 << 15, r=8, p=1).derive(code.encode())


def asker_proof(key: bytes) -> str:
    """Return what the asker sends."""
    return hmac.new(key, b"asker", "sha256").hexdigest()


def waiting_proof(key: bytes) -> str:
    """Return what the waiting server answers."""
    return hmac.new(key, b"waiting", "sha256").hexdigest()


def same(ours: str, theirs: str) -> bool:
    """Compare two proofs in constant time."""
    return hmac.compare_digest(ours.encode(), theirs.encode())
