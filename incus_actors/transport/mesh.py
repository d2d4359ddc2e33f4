"""Encrypted, authenticated, lossy links between this member and every other, on one event loop.

Owns one zmq.Context with its ZAP handler, a bound ROUTER that only receives and a DEALER per peer that only sends;
`control_lane.py` and `bulk_lane.py` are what is said over it. All methods belong to the loop of `start`. Must never
block, never queue for a peer that is away, and never hand up a message whose key is not that of a present member.

Why DEALERs never receive: each member's own dial is one direction, so a link is up when both members have got
through to the other, and each direction is evidence of its own when it breaks (CONSENSUS 3.7).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Protocol

import zmq

from incus_actors.transport.evidence import Link
from incus_actors.transport.inbound import HEADER_BYTES, LINK_FRAME, WIRE_VERSION, Inbound
from incus_actors.transport.keys import CurveKeys
from incus_actors.transport.options import LaneOptions
from incus_actors.transport.outbound import Dialer
from incus_actors.transport.pump import PumpSet
from incus_actors.transport.tally import Tally
from incus_actors.transport.zap import Allowlist, ZapHandler

log = logging.getLogger(__name__)

Target = tuple[str, int, bytes]  #: host, port, raw public key


REMOVED = "removed"


class MeshListener(Protocol):
    """What a lane is told, on the loop of the mesh."""

    def on_frame(self, member: int, kind: int, data: bytes) -> None:
        """A frame from a present member."""

    def on_up(self, member: int) -> None:
        """Both directions work. Said again without an `on_down` when the link broke and came back in time."""

    def on_down(self, member: int, evidence: str) -> None:
        """Both directions broke: "E2" or "E1"; or REMOVED: by our own will."""


class Mesh:
    """See the module. Create it anywhere, `start` it on the loop it shall live on."""

    def __init__(self, keys: CurveKeys, options: LaneOptions, listener: MeshListener) -> None:
        self.tally = Tally(options.name, log)
        self.bound_port = 0
        self._keys = keys
        self._options = options
        self._listener = listener
        self._allowed = Allowlist()
        self._peers: dict[int, Target] = {}
        self._dialers: dict[int, Dialer] = {}
        self._links: dict[int, Link] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pumps: PumpSet | None = None
        self._zap: ZapHandler | None = None
        self._inbound: Inbound | None = None
        self._next_look: asyncio.TimerHandle | None = None

    def start(self, host: str | None, port: int) -> int:
        """Bind on the running loop (host None: listen nowhere yet); returns the port. Raises OSError if it is taken."""
        asyncio.get_running_loop()
        context = self._context = zmq.Context(io_threads=1)
        _inherit_priority(context)
        pumps = self._pumps = PumpSet()
        self._zap = ZapHandler(context, pumps, self._options.name, self._allowed, self.tally)
        self._inbound = Inbound(
            context,
            pumps,
            self._keys,
            self._options,
            self.tally,
            self._allowed,
            on_frame=self._listener.on_frame,
            on_up=self._inbound_up,
            on_down=self._inbound_down,
        )
        self._look_later()
        if host is not None:
            self.rebind(host, port)
        peers, self._peers = self._peers, {}
        self.set_peers(peers)
        return self.bound_port

    def rebind(self, host: str, port: int, *, keep: bool = False) -> int:
        """Listen elsewhere; who dialled the old place has to dial the new one, but with `keep` not before `release`.

        Returns the port.

        Raises OSError (then it listens where it did), RuntimeError.
        """
        if self._inbound is None:
            raise RuntimeError("the lane is not started")
        self.bound_port = self._inbound.bind(host, port, keep=keep)
        return self.bound_port

    def release(self) -> None:
        """Listen no more where `rebind` has kept us listening."""
        if self._inbound is not None:
            self._inbound.release()

    def unbind(self) -> None:
        """Listen nowhere; who dialled us is disconnected."""
        if self._inbound is not None:
            self._inbound.unbind()
        self.bound_port = 0

    # -- peers -----------------------------------------------------------------------------------------------------

    def set_peers(self, peers: Mapping[int, Target]) -> None:
        """Have links to exactly these. A key that is not among them is cut off before this returns."""
        self._allowed.replace({key: member for member, (_, _, key) in peers.items()})
        before, self._peers = self._peers, dict(peers)
        if self._inbound is None:
            return  # before `start`, or after `close`
        for member, target in before.items():
            if self._peers.get(member) != target:
                self._drop(member, key_gone=member not in peers or peers[member][2] != target[2])
        for member, target in self._peers.items():
            if before.get(member) != target:
                self._dial(member, target)

    def _dial(self, member: int, target: Target) -> None:
        if self._context is None or self._pumps is None:
            return
        link = Link(
            target[:2],
            on_up=lambda: self._up(member),
            on_down=lambda evidence: self._down(member, evidence),
            drain=self.drain,
            name=f"member {member} ({self._options.name})",
        )
        self._links[member] = link
        self._dialers[member] = Dialer(
            self._context,
            self._pumps,
            self._keys,
            self._options,
            self.tally,
            target,
            on_up=lambda: self._outbound_up(member),
            on_down=lambda: self._outbound_down(member),
        )
        if self._inbound is not None and self._inbound.is_up(member):
            link.changed(in_up=True)

    def _drop(self, member: int, *, key_gone: bool) -> None:
        link = self._links.pop(member, None)
        was_up = link is not None and link.reported
        if link is not None:
            link.close()
        dialer = self._dialers.pop(member, None)
        if dialer is not None:
            dialer.close()
        if key_gone and self._inbound is not None:
            self._inbound.cut(member)
        if was_up:
            self._listener.on_down(member, REMOVED)

    # -- links -----------------------------------------------------------------------------------------------------

    def _outbound_up(self, member: int) -> None:
        dialer = self._dialers.get(member)
        if dialer is not None:
            dialer.send(LINK_FRAME)
            self._change(member, out_up=True)

    def _outbound_down(self, member: int) -> None:
        self.tally.add("outbound_lost")
        self._change(member, out_up=False)

    def _inbound_up(self, member: int) -> None:
        dialer = self._dialers.get(member)
        if dialer is not None:
            dialer.hurry()
        self._change(member, in_up=True)

    def _inbound_down(self, member: int) -> None:
        self.tally.add("inbound_lost")
        self._change(member, in_up=False)

    def _change(self, member: int, *, out_up: bool | None = None, in_up: bool | None = None) -> None:
        link = self._links.get(member)
        if link is not None:
            link.changed(out_up=out_up, in_up=in_up)

    def _up(self, member: int) -> None:
        self.tally.add("link_up")
        self._listener.on_up(member)

    def _down(self, member: int, evidence: str) -> None:
        self.tally.add(f"link_down_{evidence.lower()}")
        self._listener.on_down(member, evidence)

    def links(self) -> frozenset[int]:
        """Return the peers that both directions of the link stand with."""
        return frozenset(member for member, link in self._links.items() if link.up)

    def refusing(self) -> frozenset[int]:
        """Return the peers that refused our key when we last dialled them."""
        return frozenset(member for member, dialer in self._dialers.items() if dialer.refused)

    # -- signs of life ---------------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        self._next_look = asyncio.get_running_loop().call_later(self._options.sign_ms / 1000, self._look)

    def _look(self) -> None:
        """Say on every connection that it stands, and break those that bring nothing. Counted in looks, not in seconds:
        after a stall of ours what the others said meanwhile waits to be read."""
        for dialer in self._dialers.values():
            dialer.send(LINK_FRAME)
        self.drain()
        if self._inbound is not None:
            self._inbound.break_silent(-(-self._options.silent_ms // self._options.sign_ms))
            self._look_later()

    # -- frames ----------------------------------------------------------------------------------------------------

    def send(self, member: int, kind: int, data: bytes) -> str:
        """Queue a frame; returns "", "down" (no connection), "full" or "too_large". Never waits."""
        if len(data) > self._options.max_bytes:
            self.tally.note("too_large", f"{len(data)} bytes for member {member} were not sent")
            return "too_large"
        dialer = self._dialers.get(member)
        result = "down" if dialer is None else dialer.send(bytes((WIRE_VERSION, kind)) + data)
        self.tally.add(f"send_{result}" if result else "sent")
        return result

    def drain(self) -> None:
        """Deliver everything that waits in sockets and monitors."""
        if self._pumps is not None:
            self._pumps.drain()

    async def close(self) -> None:
        """Release every socket without lingering; nothing is reported any more."""
        if self._next_look is not None:
            self._next_look.cancel()
        for link in self._links.values():
            link.close()
        for dialer in self._dialers.values():
            dialer.close()
        self._links.clear()
        self._dialers.clear()
        if self._inbound is not None:
            self._inbound.close()
            self._inbound = None
        if self._zap is not None:
            self._zap.close()
            self._zap = None
        if self._pumps is not None:
            self._pumps.close()
            self._pumps = None
        context, self._context = self._context, None
        if context is not None:
            await asyncio.get_running_loop().run_in_executor(None, context.term)


__all__ = ["HEADER_BYTES", "REMOVED", "Mesh", "MeshListener", "Target"]


def _inherit_priority(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Let the I/O thread run before others if our thread does: its priority is reset for every thread it starts, and
    a heartbeat must not wait in the I/O thread for a busy CPU. Asked only where it is surely allowed: libzmq aborts
    the process otherwise."""
    if os.sched_getscheduler(0) & 0xFF == os.SCHED_RR:
        context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_RR)
        context.set(zmq.THREAD_PRIORITY, 1)
