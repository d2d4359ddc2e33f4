"""A server that waits to be joined: who has asked for it, with which code, and who has proven to know it.

Owns the sessions and their limits; rest/discovery_listener.py asks it for strangers, rest/discovery_routes.py for the
terminal of this server. Exists only while the server waits. Must never let a stranger do anything but ask, and never
take a code twice.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from incus_actors.errors import BadRequestError, ClientError, ForbiddenError
from incus_actors.security import pairing
from incus_actors.security.pairing import Transcript

_log = logging.getLogger(__name__)

CODE_S: Final = 300.0  #: how long a code can be typed
PAIRED_S: Final = 900.0  #: how long an asker who knew it has to come back
ATTEMPTS: Final = 3
_SESSIONS: Final = 8
_NAME_MAX: Final = 63


@dataclass(slots=True)
class Session:
    """One asker, seen by its certificate. `code` is shown on this server's screen and nowhere else."""

    id: str
    asker: str  #: name, as it says
    address: str
    fingerprint: str
    transcript: Transcript
    code: str
    ends_at: float
    attempts: int = ATTEMPTS
    paired: bool = False
    used: bool = False

    def shown(self) -> dict[str, Any]:
        """Return what this server's terminal shows."""
        return {
            "asker": self.asker,
            "address": self.address,
            "fingerprint": self.fingerprint,
            "code": "" if self.used else self.code,
            "state": "paired" if self.paired else "refused" if self.used else "waiting",
        }


@dataclass(slots=True)
class Waiting:
    """What this server says of itself while it waits."""

    name: str
    fingerprint: str
    clock_s: Callable[[], float] = time.monotonic
    sessions: dict[str, Session] = field(default_factory=dict)

    # -- asking -------------------------------------------------------------------------------------------------------

    def ask(self, *, asker: str, address: str, fingerprint: str, nonce: str) -> Session:
        """Open a session for an asker and show its code here. A new one replaces the one from the same host.

        Raises BadRequestError (nonsense), ClientError (429: too many askers).
        """
        if len(nonce) != 2 * pairing.NONCE_BYTES or any(char not in "0123456789abcdef" for char in nonce):
            raise BadRequestError("Invalid nonce")
        self._forget()
        host = address.rpartition(":")[0]
        for old in [s for s in self.sessions.values() if s.address.rpartition(":")[0] == host]:
            del self.sessions[old.id]
        if len(self.sessions) >= _SESSIONS:
            raise ClientError("Too many servers ask for this one", status=429)
        session_id = secrets.token_hex(16)
        transcript = Transcript(fingerprint, self.fingerprint, nonce, session_id)
        session = Session(
            id=session_id,
            asker=printable(asker),
            address=address,
            fingerprint=fingerprint,
            transcript=transcript,
            code=pairing.make_code(secrets.token_bytes(32), transcript),
            ends_at=self.clock_s() + CODE_S,
        )
        self.sessions[session_id] = session
        _log.warning(
            "%s at %s (certificate %s) wants this server in its cluster; if that is yours, type this code there: %s",
            session.asker,
            address,
            fingerprint[:12],
            session.code,
        )
        return session

    def _forget(self) -> None:
        now = self.clock_s()
        for old in [s for s in self.sessions.values() if s.ends_at < now]:
            del self.sessions[old.id]

    # -- proving ------------------------------------------------------------------------------------------------------

    async def confirm(self, session_id: str, fingerprint: str, proof: str) -> str:
        """Take the asker's proof that a person typed the code there; return ours.

        A code is good for one proof, and for three wrong ones. Raises ForbiddenError.
        """
        session = self._session(session_id, fingerprint)
        if session.used or session.paired:
            raise ForbiddenError("This code was used already")
        session.attempts -= 1
        if session.attempts <= 0:
            session.used = True  # before anything is awaited: attempts side by side count too
        key = await asyncio.to_thread(pairing.derive, session.code, session.transcript)
        if not pairing.same(pairing.asker_proof(key), proof):
            _log.warning("wrong code from %s at %s", session.asker, session.address)
            left = session.attempts
            raise ForbiddenError(f"Wrong code, {left} attempts left" if left > 0 else "Wrong code, no attempts left")
        if session.paired:
            raise ForbiddenError("This code was used already")
        session.paired = session.used = True
        session.ends_at = self.clock_s() + PAIRED_S
        _log.warning(
            "%s at %s knows the code: it may now join this server to its cluster", session.asker, session.address
        )
        return pairing.waiting_proof(key)

    def _session(self, session_id: str, fingerprint: str) -> Session:
        self._forget()
        session = self.sessions.get(session_id)
        if session is None or session.fingerprint != fingerprint:
            raise ForbiddenError("There is no such request, or its code has expired")
        return session

    def paired(self, session_id: str, fingerprint: str) -> Session:
        """Return the session of an asker who knew the code. Raises ForbiddenError."""
        session = self._session(session_id, fingerprint)
        if not session.paired:
            raise ForbiddenError
        return session

    def shown(self) -> list[dict[str, Any]]:
        """Return the sessions for this server's terminal, the oldest first."""
        self._forget()
        return [session.shown() for session in self.sessions.values()]


def printable(text: str) -> str:
    """Return a stranger's text as it may be shown: one line, no control characters, not endless."""
    return "".join(char if char.isprintable() else "?" for char in text[:_NAME_MAX]) or "?"
