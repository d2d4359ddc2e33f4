"""Small JSON calls to other members over HTTPS, for when there is no actor transport yet: joining and leaving.

Owns the pinned connection: our server certificate is shown, theirs must have exactly the fingerprint that we were
told. Called by services/join.py and services/members.py. Must never fall back to an unpinned connection.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import aiohttp

from incus_actors.errors import ApiError, MemberError
from incus_actors.security.certificates import fingerprint_pem
from incus_actors.security.tls import client_context

CONNECT_S = 5.0


class PeerRefusedError(ApiError):
    """The other member answered with an error; text and status are its own."""


class PeerUnreachableError(MemberError):
    """No answer from there."""


class PeerClient:
    """`certificate` and `key` are our server.crt and server.key."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key

    async def post(self, address: str, path: str, body: Any, *, certificate_pem: str, timeout_s: float) -> Any:
        """POST `body` to https://address/path and return the answer's metadata.

        `certificate_pem`: what the peer must show. Raises PeerRefusedError, PeerUnreachableError.
        """
        pin = aiohttp.Fingerprint(bytes.fromhex(fingerprint_pem(certificate_pem)))
        context = client_context(self._certificate, self._key)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        connector = aiohttp.TCPConnector(ssl=pin, force_close=True, family=socket.AF_UNSPEC)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
                session.post(f"https://{address}{path}", json=body, ssl=context) as response,
            ):
                answer = json.loads(await response.read())
        except aiohttp.ServerFingerprintMismatch as error:
            raise PeerUnreachableError(
                f'Certificate fingerprint mismatch between join token and cluster member "{address}"'
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise PeerUnreachableError(
                f'Failed to connect to target cluster node "{address}": {_reason(error)}'
            ) from error
        if not isinstance(answer, dict) or answer.get("type") == "error" or response.status >= 400:
            text = answer.get("error") if isinstance(answer, dict) else ""
            raise PeerRefusedError(str(text or f"Answer {response.status} from {address}"), status=response.status)
        return answer.get("metadata")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno:  # aiohttp's connector errors are OSErrors
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
