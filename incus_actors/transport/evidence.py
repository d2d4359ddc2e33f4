"""What a broken connection proves (CONSENSUS 3.7): probing a peer, and the state of the link to it.

Owns the decision between E0 (re-dial only), E1 and E2 for one peer; used by `mesh.py`. Must never report a link down
while one of its directions still stands.
"""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import Callable
from typing import Literal

from incus_actors.tasks import spawn

GRACE_S = 0.025  #: how long to wait for a new handshake before E1
LATE_S = 0.01  #: a timer that fires so much late means that we were stalled
STALLS_FORGIVEN = 2

Verdict = Literal["refused", "alive", "silent"]


async def probe(host: str, port: int, *, timeout_s: float = GRACE_S) -> Verdict:
    """Knock at a peer's port with plain TCP.

    "refused": nothing listens there. "alive": something answered (ZeroMQ greets first). "silent": neither in time.
    A connection that is accepted and then reset at once is a listener that is just dying: knock again. So it is when
    this process was late itself: its own stall says nothing about the peer.
    """
    clock = asyncio.get_running_loop().time
    for _ in range(STALLS_FORGIVEN + 1):
        began = clock()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    verdict = await _knock(host, port)
                    if verdict is not None:
                        return verdict
                    await asyncio.sleep(0.001)
        except TimeoutError:
            if clock() - began < timeout_s + LATE_S:
                break
    return "silent"


async def _knock(host: str, port: int) -> Verdict | None:
    loop = asyncio.get_running_loop()
    try:
        with sockets.socket(sockets.AF_INET6 if ":" in host else sockets.AF_INET, sockets.SOCK_STREAM) as knocking:
            knocking.setblocking(False)
            await loop.sock_connect(knocking, (host, port))
            try:
                return "alive" if await loop.sock_recv(knocking, 1) else None
            except ConnectionError:
                return None
    except ConnectionRefusedError:
        return "refused"
    except ConnectionError:
        return None
    except OSError:
        return "silent"


class Link:
    """Both directions to one peer, and what was reported of them."""

    def __init__(
        self,
        target: tuple[str, int],
        *,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        drain: Callable[[], None],
        name: str,
    ) -> None:
        self.out_up = False
        self.in_up = False
        self.reported = False
        self._target = target
        self._on_up = on_up
        self._on_down = on_down
        self._drain = drain
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._flapped = False
        self._probing: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._grace_over = False

    @property
    def up(self) -> bool:
        """Both directions stand."""
        return self.out_up and self.in_up

    def changed(self, *, out_up: bool | None = None, in_up: bool | None = None) -> None:
        """A direction came up or broke (None: as it was)."""
        broke = out_up is False or in_up is False
        self.out_up = self.out_up if out_up is None else out_up
        self.in_up = self.in_up if in_up is None else in_up
        if self.up:
            self._calm()
            if not self.reported or self._flapped:
                self.reported, self._flapped = True, False
                self._on_up()
        elif broke and self.reported:
            self._flapped = True
            self._suspect()

    def _suspect(self) -> None:
        """Something broke: knock at once (an older answer proves nothing); once both are down, the grace runs."""
        if self._probing is None:
            self._probing = spawn(self._probe(), name=f"probe of {self._name}")
        if not self.out_up and not self.in_up and self._grace is None and not self._grace_over:
            self._grace = self._loop.call_later(GRACE_S, self._graceless)

    async def _probe(self) -> None:
        try:
            verdict = await probe(*self._target)
        finally:
            self._probing = None
        if verdict == "refused":
            self._conclude("E2")
        elif self._grace_over:
            self._conclude("E1")

    def _graceless(self) -> None:
        self._grace = None
        self._grace_over = True
        if self._probing is None:
            self._conclude("E1")  # else the probe, which is about to end, concludes

    def _conclude(self, evidence: str) -> None:
        self._drain()  # a new handshake may wait to be read
        if self.reported and not self.out_up and not self.in_up:
            self._down(evidence)

    def _down(self, evidence: str) -> None:
        self.reported, self._flapped = False, False
        self._calm()
        self._on_down(evidence)

    def _calm(self) -> None:
        self._grace_over = False
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def close(self) -> None:
        """Say nothing more."""
        self.reported = False
        self._calm()
        if self._probing is not None:
            self._probing.cancel()
