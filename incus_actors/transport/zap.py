"""Who may connect: the allowlist of public keys, and the ZAP handler that asks it (ZeroMQ RFC 27).

Owns both for one zmq.Context; used by `mesh.py`. The handler only admits; each message is checked again by its
User-Id, so that a key taken off the list is cut off at once. Must never admit a key that is not on the list now.
"""

from __future__ import annotations

from collections.abc import Mapping

import zmq

from incus_actors.transport.pump import Pump, PumpSet
from incus_actors.transport.tally import Tally

ZAP_ENDPOINT = "inproc://zeromq.zap.01"


class Allowlist:
    """Public key → member id; replaced as a whole."""

    def __init__(self) -> None:
        self._members: dict[str, int] = {}

    def replace(self, keys: Mapping[bytes, int]) -> None:
        """From now on exactly these."""
        self._members = {key.hex(): member for key, member in keys.items()}

    def member_of(self, key_hex: str) -> int | None:
        """Return whose key it is, or None for a stranger."""
        return self._members.get(key_hex)


class ZapHandler:
    """Answers libzmq's question for every new connection; the User-Id of an admitted one is its key in hex."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], pumps: PumpSet, domain: str, allowed: Allowlist, tally: Tally
    ) -> None:
        self._domain = domain.encode()
        self._allowed = allowed
        self._tally = tally
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ZAP_ENDPOINT)
        self.pump = Pump(pumps, self._socket, self._request)

    def _request(self) -> bool:
        try:
            parts = self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        version, request = (parts[0], parts[1]) if len(parts) > 1 else (b"1.0", b"")
        user = self._decide(parts)
        if user:
            self._tally.add("zap_accepted")
            answer = [version, request, b"200", b"OK", user.encode(), b""]
        else:
            answer = [version, request, b"400", b"not a member", b"", b""]
        self._socket.send_multipart(answer, zmq.DONTWAIT)
        return True

    def _decide(self, parts: list[bytes]) -> str:
        """Return the key of a member in hex, or nothing."""
        if len(parts) != 7 or parts[0] != b"1.0" or parts[2] != self._domain or parts[5] != b"CURVE":
            self._tally.note("zap_refused", "a request of an unknown kind")
            return ""
        key = parts[6].hex()
        if self._allowed.member_of(key) is None:
            self._tally.note("zap_refused", f"unknown key {key[:16]}… from {parts[3][:64].decode(errors='replace')}")
            return ""
        return key

    def close(self) -> None:
        """Stop answering; new connections then fail."""
        self.pump.close()
        self._socket.close(0)
