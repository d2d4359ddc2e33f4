"""A silent member is warned of once, by whoever leads, and taken back when it speaks again."""

from __future__ import annotations

from typing import Any

from cluster_kit import Server, servers, until

from incus_actors.actors.actor import ChildSpec
from incus_actors.actors.offline_watch import OFFLINE_MEMBER, OfflineWatchActor
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.services.members import why_offline


async def watch(server: Server) -> None:
    def build() -> OfflineWatchActor:
        return OfflineWatchActor(
            consensus=server.consensus, database=server.database, heartbeats=server.heartbeats, tick_s=0.05
        )

    await server.actors.start_child(ChildSpec("offline", build))


def warnings(server: Server) -> list[tuple[Any, ...]]:
    rows = server.database.query("SELECT type_code, node_id, status, count, last_message FROM warnings ORDER BY id")
    return [tuple(row) for row in rows]


async def test_raised_and_resolved_also_by_the_next_leader(tmp_path):
    async with servers(tmp_path, 3, clustered=True) as made:
        first, second, third = made
        await until(lambda: all(m.status == "Online" for m in first.cases.members.members()))
        await until(lambda: sum("database" in m.roles for m in first.cases.members.members()) == 3)
        for server in made:
            await watch(server)
        outcome = await first.consensus.propose(
            Transaction((Statement("INSERT INTO config (key, value) VALUES ('cluster.offline_threshold', '1')"),))
        )
        assert outcome.applied
        assert why_offline(first.database, first.heartbeats, 3, 1) == ""
        third.cut_off()
        await until(lambda: warnings(first))
        ((code, member, status, count, text),) = warnings(first)
        assert (code, member, status, count) == (OFFLINE_MEMBER, 3, 1, 1)
        assert text.startswith("Member node3 is offline: no heartbeat for ")
        reason = why_offline(first.database, first.heartbeats, 3, 1)
        assert reason.startswith("cluster member node3 is offline, no heartbeat for ")
        assert await first.consensus.transfer_leadership(2)
        await until(lambda: second.consensus.status().leader == 2)
        third.cut_off(False)
        await until(lambda: [row[2] for row in warnings(second)] == [3])
        assert len(warnings(second)) == 1
        assert warnings(second)[0][3] == 1
