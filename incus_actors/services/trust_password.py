"""`core.trust_password`: the one shared secret that lets strangers in, off unless it is set.

Owns how it is kept (a hash), shown (as "true") and tried: one attempt at a time, each wrong one slower than the one
before, all of them logged with their address. services/server_config.py stores it, services/trust.py asks `admit`.
Must never log, return or compare the password itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from incus_actors.errors import BadRequestError, ClientError, ForbiddenError
from incus_actors.security import passwords
from incus_actors.state.queries import config as queries
from incus_actors.state.reader import Reader

_log = logging.getLogger(__name__)

KEY: Final = "core.trust_password"
SHOWN: Final = "true"  #: what readers of the configuration see, and may send back unchanged

FIRST_DELAY_S: Final = 1.0
LONGEST_DELAY_S: Final = 30.0
FORGET_S: Final = 600.0  #: an address that was quiet for so long starts anew
_WAITING_AT_ONCE: Final = 4
_ADDRESSES: Final = 256


def masked(config: Mapping[str, str]) -> dict[str, str]:
    """Return a configuration as it may be shown."""
    return {key: SHOWN if key == KEY else value for key, value in config.items()}


async def stored(given: Mapping[str, str], present: str) -> dict[str, str]:
    """Return the values to store for those given: the password hashed, or as it is if it does not change.

    `present` is the stored hash, "" without one. Raises BadRequestError for a password that is too long.
    """
    values = dict(given)
    password = values.get(KEY, "")
    if not password:
        return values
    if present and (password == SHOWN or await asyncio.to_thread(passwords.is_password, password, present)):
        values[KEY] = present
        return values
    try:
        values[KEY] = await asyncio.to_thread(passwords.hash_password, password)
    except ValueError as problem:
        raise BadRequestError(f"cannot set '{KEY}': {problem}") from None
    return values


class TrustPassword:
    """Tries passwords of strangers."""

    def __init__(
        self,
        database: Reader,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._sleep = sleep
        self._clock_s = clock_s
        self._one = asyncio.Lock()
        self._waiting = 0
        self._failures: dict[str, tuple[int, float]] = {}  #: host → (wrong attempts, when the last one was)

    def is_set(self) -> bool:
        """Return whether strangers may come in by password at all."""
        return bool(self._hash())

    def _hash(self) -> str:
        return queries.global_config(self._database).get(KEY, "")

    async def admit(self, password: str, address: str) -> None:
        """Return if it is the password. Raises ForbiddenError after a while if not, ClientError (429) for too many
        attempts at once."""
        if not self.is_set():
            raise ForbiddenError
        if self._waiting >= _WAITING_AT_ONCE:
            _log.warning("too many attempts at the trust password at once, one from %s is refused", address)
            raise ClientError("Too many attempts at the trust password, try again later", status=429)
        self._waiting += 1
        try:
            async with self._one:
                await self._try(password, address)
        finally:
            self._waiting -= 1

    async def _try(self, password: str, address: str) -> None:
        host = address.rpartition(":")[0]
        if await asyncio.to_thread(passwords.is_password, password, self._hash()):
            self._failures.pop(host, None)
            return
        wrong = self._count(host)
        delay_s = min(FIRST_DELAY_S * 2 ** (wrong - 1), LONGEST_DELAY_S)
        _log.warning("wrong trust password from %s (attempt %d), answered after %.0f s", address, wrong, delay_s)
        await self._sleep(delay_s)
        raise ForbiddenError("not authorized: the trust password is wrong")

    def _count(self, host: str) -> int:
        now = self._clock_s()
        known, when = self._failures.pop(host, (0, now))
        wrong = (known if now - when < FORGET_S else 0) + 1
        self._failures[host] = (wrong, now)
        while len(self._failures) > _ADDRESSES:
            self._failures.pop(next(iter(self._failures)))
        return wrong
