"""Runtimes in one process: a lane through memory, databases in a temporary directory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.bootstrap import create_joiner, create_standalone
from incus_actors.consensus.lane import LaneListener
from incus_actors.consensus.lanes import NoLane
from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import Limits, Member, MemberId, RaftRole, Role
from incus_actors.model.transaction import Outcome, Statement, Transaction

CLUSTER = bytes(range(16))


class Network:
    """Delivers between lanes of different loops; `cut` isolates a member silently."""

    def __init__(self) -> None:
        self.lanes: dict[MemberId, MemoryLane] = {}
        self.cut: set[MemberId] = set()
        self.lock = threading.Lock()

    def lane(self) -> MemoryLane:
        return MemoryLane(self)

    def others(self, own_id: MemberId) -> list[MemoryLane]:
        with self.lock:
            return [lane for member, lane in self.lanes.items() if member != own_id]


class MemoryLane:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.own_id = 0
        self.peers: set[MemberId] = set()
        self.listener: LaneListener | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    async def start(self, listener: LaneListener) -> None:
        self.listener, self.loop = listener, asyncio.get_running_loop()

    def set_peers(self, members: Iterable[Member], own_id: MemberId) -> None:
        self.peers = {member.id for member in members}
        if not self.own_id:
            self.own_id = own_id
            with self.network.lock:
                self.network.lanes[own_id] = self
            for other in self.network.others(own_id):
                other.later(other.link_up, own_id)
                self.later(self.link_up, other.own_id)

    def send(self, envelope: Envelope, *, bulk: bool = False) -> None:
        lane = self.network.lanes.get(envelope.destination)
        if lane is not None and not self.network.cut & {self.own_id, envelope.destination}:
            lane.later(lane.arrived, envelope)

    def later(self, call: Callable[..., None], *arguments: object) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(call, *arguments)

    def arrived(self, envelope: Envelope) -> None:
        if self.listener is not None:
            self.listener.on_message(envelope)

    def link_up(self, peer: MemberId) -> None:
        if self.listener is not None:
            self.listener.on_link_up(peer)

    def link_down(self, peer: MemberId) -> None:
        if self.listener is not None:
            self.listener.on_link_down(peer, "E2")

    def drain(self) -> None:
        pass

    def refusing(self) -> frozenset[MemberId]:
        return frozenset()

    def links(self) -> frozenset[MemberId]:
        return frozenset(self.network.lanes) - self.network.cut - {self.own_id}

    async def close(self) -> None:
        self.listener = None
        with self.network.lock:
            self.network.lanes.pop(self.own_id, None)
        for other in self.network.others(self.own_id):
            other.later(other.link_down, self.own_id)


def insert(value: int) -> Transaction:
    return Transaction((Statement("INSERT INTO t (a) VALUES (?)", (value,)),), topics=("config",))


TABLE = Transaction(
    (Statement("CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER UNIQUE, at TEXT DEFAULT CURRENT_TIMESTAMP) STRICT"),),
    topics=("schema",),
    schema=True,
)


@asynccontextmanager
async def standalone(directory: Path, *, limits: Limits | None = None) -> AsyncIterator[ConsensusRuntime]:
    """A started one-member runtime on `directory`, which is made if it has no log."""
    if not (directory / fmt.LOG_NAME).exists():
        create_standalone(directory, address="one")
    runtime = ConsensusRuntime(directory, NoLane, realtime=False, limits=limits)
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop()


async def grown(
    root: Path, network: Network, *, size: int = 3, limits: Limits | None = None
) -> dict[MemberId, ConsensusRuntime]:
    """Return started runtimes of a cluster of `size` voters, grown from a standalone as a daemon does it."""
    create_standalone(root / "1", address="member-1", cluster_id=CLUSTER)
    runtimes = {1: ConsensusRuntime(root / "1", network.lane, realtime=False, limits=limits)}
    await runtimes[1].start()
    await applied(runtimes[1], TABLE)
    for member in range(2, size + 1):
        await add(root, network, runtimes, member, limits=limits)
    everyone = tuple(Member(m, f"member-{m}", Role.VOTER) for m in range(1, size + 1))
    await runtimes[1].change_configuration(everyone)
    return runtimes


async def add(
    root: Path,
    network: Network,
    runtimes: dict[MemberId, ConsensusRuntime],
    member: MemberId,
    *,
    limits: Limits | None = None,
    told: Callable[[frozenset[str]], None] | None = None,
    epoch: int = 1,
) -> None:
    """Join one member as a standby; `told` hears its topics from the first."""
    leader = leading(runtimes)
    known = leader.status().configuration
    await leader.change_configuration((*known.target, Member(member, f"member-{member}", Role.STANDBY)))
    create_joiner(root / str(member), cluster_id=CLUSTER, epoch=epoch, member_id=member, configuration=known)
    runtimes[member] = ConsensusRuntime(root / str(member), network.lane, realtime=False, limits=limits)
    if told is not None:
        runtimes[member].subscribe_applied(lambda _, topics: told(topics))
    await runtimes[member].start()


async def applied(runtime: ConsensusRuntime, transaction: Transaction) -> Outcome:
    outcome = await runtime.propose(transaction)
    assert outcome.applied, outcome
    return outcome


def leading(runtimes: dict[MemberId, ConsensusRuntime]) -> ConsensusRuntime:
    """The one that leads in the highest term."""
    leaders = [r for r in runtimes.values() if r.status().role is RaftRole.LEADER]
    return max(leaders, key=lambda runtime: runtime.status().term)


async def until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Wait for something that becomes true by itself."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def stop_all(runtimes: dict[MemberId, ConsensusRuntime]) -> None:
    for runtime in runtimes.values():
        await runtime.stop(handover=False)
