"""The runtime over real sockets: CURVE, allowlists, a snapshot on the wire, a leader that is killed off."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from incus_actors.consensus.bootstrap import create_joiner, create_standalone
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import Limits, Member, MemberId, Role
from incus_actors.transport.address import PeerAddress, format_address
from incus_actors.transport.control_lane import ControlLane
from incus_actors.transport.keys import generate_curve_keys

from .runtime_kit import CLUSTER, TABLE, applied, insert, leading, stop_all, until

COUNT = "SELECT COUNT(*) FROM t"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Site:
    """A member's keys, address and runtime."""

    def __init__(self, root: Path, member: MemberId, limits: Limits | None) -> None:
        keys, port = generate_curve_keys(), free_port()
        self.member = member
        self.directory = root / str(member)
        self.address = format_address(PeerAddress("127.0.0.1", port, port, keys.public_hex))
        self.runtime = ConsensusRuntime(
            self.directory, lambda: ControlLane(keys, "127.0.0.1", port), realtime=False, limits=limits
        )

    def as_member(self, role: Role = Role.VOTER) -> Member:
        return Member(self.member, self.address, role)


async def join(first: Site, other: Site) -> None:
    """As a daemon does it: into the configuration, a database that knows it, start, promotion."""
    known = first.runtime.status().configuration
    await first.runtime.change_configuration((*known.target, other.as_member(Role.STANDBY)))
    create_joiner(
        other.directory,
        cluster_id=CLUSTER,
        epoch=1,
        member_id=other.member,
        configuration=first.runtime.status().configuration,
    )
    await other.runtime.start()
    await until(lambda: other.runtime.status().applied >= first.runtime.status().commit)


async def test_three_members_over_sockets_with_a_snapshot_and_a_lost_leader(tmp_path: Path) -> None:
    limits = Limits(retained_entries=32, snapshot_chunk_bytes=16384)
    sites = [Site(tmp_path, member, limits) for member in (1, 2, 3)]
    first, second, third = sites
    create_standalone(first.directory, address=first.address, cluster_id=CLUSTER)
    runtimes = {1: first.runtime}
    try:
        await first.runtime.start()
        await applied(first.runtime, TABLE)
        for start in range(0, 300, 100):
            await asyncio.gather(*(first.runtime.propose(insert(n)) for n in range(start, start + 100)))
        await until(lambda: first.runtime.status().first > 100)
        for site in (second, third):
            await join(first, site)
            runtimes[site.member] = site.runtime
            await until(lambda site=site: site.runtime.database.path.name == "global-2.db")  # type: ignore[misc]
            assert site.runtime.database.scalar(COUNT) == 300
        await first.runtime.change_configuration(tuple(site.as_member() for site in sites))
        for site in sites:
            await applied(site.runtime, insert(1000 + site.member))
        old = leading(runtimes)
        del runtimes[old.member_id]
        await old.stop(handover=False)
        for member, runtime in runtimes.items():
            await applied(runtime, insert(2000 + member))
        await old.start()
        await applied(old, insert(3000))
        await asyncio.gather(*(site.runtime.read_barrier() for site in sites))
        assert [site.runtime.database.scalar(COUNT) for site in sites] == [306] * 3
        runtimes[old.member_id] = old
    finally:
        await stop_all(runtimes)
