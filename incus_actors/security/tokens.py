"""Join and trust tokens, byte for byte as Incus prints them (CONTRACT 5.1, 6.5).

Owns encoding, decoding, making and comparing secrets; services issue and check tokens with it. A secret must
never be compared with `==` nor appear in an error.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
from dataclasses import dataclass

NEVER = "0001-01-01T00:00:00Z"  #: Go's zero time: does not expire


class TokenError(ValueError):
    """Not a token of this kind."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Lets one server join a cluster under one name, once."""

    server_name: str
    fingerprint: str  #: of the certificate that the members show
    addresses: tuple[str, ...]  #: host:port of the members
    secret: str
    expires_at: str  #: RFC 3339

    def __repr__(self) -> str:
        return f"JoinToken({self.server_name!r}, {list(self.addresses)}, expires_at={self.expires_at})"

    def encode(self) -> str:
        """Return the base64 text that a user copies."""
        return _encode(
            {
                "server_name": self.server_name,
                "fingerprint": self.fingerprint,
                "addresses": list(self.addresses),
                "secret": self.secret,
                "expires_at": self.expires_at,
            }
        )


@dataclass(frozen=True, slots=True)
class TrustToken:
    """Lets one client into the trust store, once."""

    client_name: str
    fingerprint: str
    addresses: tuple[str, ...]
    secret: str
    expires_at: str = NEVER

    def __repr__(self) -> str:
        return f"TrustToken({self.client_name!r}, {list(self.addresses)}, expires_at={self.expires_at})"

    def encode(self) -> str:
        """Return the base64 text that a user copies."""
        return _encode(
            {
                "client_name": self.client_name,
                "fingerprint": self.fingerprint,
                "addresses": list(self.addresses),
                "secret": self.secret,
                "expires_at": self.expires_at,
            }
        )


def decode(text: str) -> JoinToken | TrustToken:
    """Return the token in `text`: whichever kind it is. Raises TokenError."""
    data = _decode(text)
    if data.get("server_name"):
        return JoinToken(_text(data, "server_name"), *_common(data))
    if data.get("client_name"):
        return TrustToken(_text(data, "client_name"), *_common(data))
    raise TokenError("Neither a server nor a client name in token")


def decode_join(text: str) -> JoinToken:
    """Return the join token in `text`. Raises TokenError."""
    token = decode(text)
    if not isinstance(token, JoinToken):
        raise TokenError("Not a join token")
    return token


def make_secret() -> str:
    """Return 32 random bytes as 64 hex digits."""
    return secrets.token_hex(32)


def equal(one: str, other: str) -> bool:
    """Compare two secrets in a time that doesn't tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def _encode(data: dict[str, object]) -> str:
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    # As Go's encoder does, so that tokens are the same byte for byte.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> dict[str, object]:
    if len(text) > 64 << 10:
        raise TokenError("Token is too long")
    try:
        data = json.loads(base64.b64decode(text.strip(), validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise TokenError("Not a token") from error
    if not isinstance(data, dict):
        raise TokenError("Not a token")
    return data


def _text(data: dict[str, object], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise TokenError(f"No {key} in token")
    return value


def _common(data: dict[str, object]) -> tuple[str, tuple[str, ...], str, str]:
    addresses = data.get("addresses")
    if not isinstance(addresses, list) or not addresses or not all(isinstance(a, str) for a in addresses):
        raise TokenError("No cluster member addresses in token")
    secret = _text(data, "secret")
    fingerprint = _text(data, "fingerprint")
    if not secret:
        raise TokenError("No secret in token")
    if not fingerprint:
        raise TokenError("No certificate fingerprint in token")
    expires_at = data.get("expires_at", NEVER)
    return fingerprint, tuple(addresses), secret, expires_at if isinstance(expires_at, str) else NEVER
