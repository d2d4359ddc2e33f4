"""The runtime on real files: one member, three members, failover, snapshots, restarts."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from incus_actors import tasks
from incus_actors.clock import ManualClock
from incus_actors.consensus import engine
from incus_actors.consensus import events as ev
from incus_actors.consensus.api import RoleChange
from incus_actors.consensus.audience import ALL_TOPICS
from incus_actors.consensus.core import Core
from incus_actors.consensus.history_file import read_history
from incus_actors.consensus.lanes import NoLane
from incus_actors.consensus.last_words import HISTORY_NAME, REPLAY_NAME
from incus_actors.consensus.log_files import AmnesiaError, LogIOError, LogLockedError
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.policy import MemberHealth
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.sessions import KEEP_MS, LIFE_MS
from incus_actors.consensus.types import Configuration, Limits, Member, RaftRole, Role
from incus_actors.consensus.upkeep import CHECK_EVERY_MS, Upkeep
from incus_actors.errors import BadRequestError, ForbiddenError, OutcomeUnknownError, UnavailableError
from incus_actors.model.transaction import Guard, Statement, Transaction
from incus_actors.simulation.replay import replay
from incus_actors.state.apply import TOO_OLD

from .runtime_kit import TABLE, Network, add, applied, grown, insert, leading, standalone, stop_all, until

COUNT = "SELECT COUNT(*) FROM t"


async def test_a_standalone_writes_reads_and_tells(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        told: list[frozenset[str]] = []
        roles: list[RoleChange] = []
        configurations: list[Configuration] = []
        runtime.subscribe_applied(lambda _, topics: told.append(topics))
        runtime.subscribe_role(roles.append)
        runtime.subscribe_configuration(configurations.append)
        assert len(configurations) == 1
        await applied(runtime, TABLE)
        outcome = await applied(runtime, insert(7))
        assert outcome.changed == (1,)
        assert await runtime.read_barrier() >= outcome.index
        assert runtime.database.query("SELECT id, a FROM t")[0]["a"] == 7
        assert told == [frozenset({"schema"}), frozenset({"config"})]
        assert roles[-1].role is RaftRole.LEADER
        assert runtime.status().member_id == runtime.member_id == 1


async def test_conflicts_and_errors_are_outcomes(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        await applied(runtime, insert(1))
        guard = Guard(COUNT, (), ((0,),), "not_empty")
        conflict = await runtime.propose(Transaction(insert(2).statements, guards=(guard,)))
        assert (conflict.status, conflict.label) == ("conflict", "not_empty")
        error = await runtime.propose(insert(1))
        assert (error.status, error.error) == ("error", "UNIQUE constraint failed: t.a")
        assert runtime.database.scalar(COUNT) == 1


async def test_many_writers_and_readers_at_once(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        outcomes = await asyncio.gather(*(runtime.propose(insert(n)) for n in range(300)))
        assert all(outcome.applied for outcome in outcomes)
        await asyncio.gather(*(runtime.read_barrier() for _ in range(100)))
        assert runtime.database.scalar(COUNT) == 300


async def test_refusals_before_anything_is_logged(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        last = runtime.status().last
        with pytest.raises(BadRequestError, match="ORDER BY"):
            await runtime.propose(Transaction((Statement("INSERT INTO a SELECT * FROM b"),)))
        with pytest.raises(BadRequestError, match="too large"):
            await runtime.propose(Transaction((Statement("INSERT INTO a VALUES (?)", (b"x" * 2_000_000,)),)))
        with pytest.raises(BadRequestError, match="64 bits"):
            await runtime.propose(Transaction((Statement("INSERT INTO a VALUES (?)", (2**63,)),)))
        with pytest.raises(BadRequestError, match="16 bytes"):
            await runtime.propose(insert(1), proposal_id=b"short")
        assert runtime.status().last <= last + 1  # at most the leader's own first entry


async def test_the_same_proposal_id_is_applied_once_across_a_restart(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        proposal_id = runtime.new_proposal_id()
        first = await runtime.propose(insert(5), proposal_id=proposal_id)
        again = await asyncio.gather(*(runtime.propose(insert(5), proposal_id=proposal_id) for _ in range(3)))
        assert again == [first] * 3
    async with standalone(tmp_path / "database") as runtime:
        assert await runtime.propose(insert(5), proposal_id=proposal_id) == first
        assert runtime.database.scalar(COUNT) == 1


async def test_sessions_expire_by_log_time_and_late_retries_are_refused(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        old = runtime.new_proposal_id()
        await runtime.propose(insert(1), proposal_id=old)
        await asyncio.sleep(0.01)
        assert await runtime.upkeep.expire_sessions(life_ms=0, keep_ms=0) >= 2
        late = await runtime.propose(insert(1), proposal_id=old)
        assert late.status == "error"
        assert "older than the memory" in late.error
        assert (await runtime.propose(insert(2))).applied
        assert runtime.database.scalar(COUNT) == 2


async def test_nothing_is_forgotten_before_it_has_been_answered_for_a_while(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        clock = ManualClock(monotonic_ms=1_000_000, wall_ms=time.time_ns() // 1_000_000 + 2 * LIFE_MS)  # two days ahead
        upkeep = Upkeep(runtime.database, clock, runtime.status, runtime._propose_upkeep)
        assert await upkeep.expire_sessions() == 0, "it has not run for long enough to know what is old"
        known = runtime.new_proposal_id()
        first = await runtime.propose(insert(1), proposal_id=known)
        clock.advance(KEEP_MS)
        assert await upkeep.expire_sessions() >= 1
        assert await runtime.propose(insert(1), proposal_id=known) == first
        clock.advance(KEEP_MS)
        assert await upkeep.expire_sessions() >= 1
        assert (await runtime.propose(insert(1), proposal_id=known)).error == TOO_OLD
        assert runtime.database.scalar(COUNT) == 1


APPLIED = "SELECT applied_index FROM _raft"


async def test_all_that_is_too_much_is_forgotten_in_portions(tmp_path: Path) -> None:
    """More may have come since the last look than one portion has."""
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        for number in range(40):
            await runtime.propose(insert(number))
        before = runtime.database.scalar(APPLIED)
        async with asyncio.timeout(30):
            await runtime.upkeep.forget_due(keep_ms=0, limit=5, portion=10)
        assert runtime.database.scalar("SELECT COUNT(*) FROM _sessions") <= 5 + 1  # and the answer to the last portion
        assert 2 <= runtime.database.scalar(APPLIED) - before <= 5, "entries, each with a portion of it"


async def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database"):
        second = ConsensusRuntime(tmp_path / "database", NoLane, realtime=False)
        with pytest.raises(LogLockedError, match="in use by another daemon"):
            await second.start()


async def test_before_start_and_after_stop_nothing_is_served(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
    with pytest.raises(UnavailableError, match="Shutting down"):
        await runtime.propose(insert(1))
    fresh = ConsensusRuntime(tmp_path / "database", NoLane)
    with pytest.raises(UnavailableError, match="starting up"):
        fresh.status()


async def test_the_log_is_compacted_and_what_was_compacted_survives(tmp_path: Path) -> None:
    limits = Limits(retained_entries=64)
    async with standalone(tmp_path / "database", limits=limits) as runtime:
        await applied(runtime, TABLE)
        for start in range(0, 1000, 100):
            await asyncio.gather(*(runtime.propose(insert(n)) for n in range(start, start + 100)))
        await until(lambda: runtime.status().first > 500)
    async with standalone(tmp_path / "database", limits=limits) as runtime:
        assert runtime.status().first > 500
        assert runtime.database.scalar(COUNT) == 1000
        assert (await runtime.propose(insert(1000))).applied


async def test_a_lost_state_file_is_rebuilt_from_the_log_or_refused(tmp_path: Path) -> None:
    directory = tmp_path / "database"
    async with standalone(directory) as runtime:
        await applied(runtime, TABLE)
        await applied(runtime, insert(1))
    for path in directory.glob("global-1.db*"):
        path.unlink()
    async with standalone(directory, limits=Limits(retained_entries=16)) as runtime:
        await runtime.read_barrier()
        assert runtime.database.scalar(COUNT) == 1
        await asyncio.gather(*(runtime.propose(insert(n)) for n in range(2, 100)))
        await until(lambda: runtime.status().first > 1)
    for path in directory.glob("global-1.db*"):
        path.unlink()
    again = ConsensusRuntime(directory, NoLane, realtime=False)
    with pytest.raises(AmnesiaError, match="missing"):
        await again.start()
    with pytest.raises(AmnesiaError):  # and for ever
        await again.start()


async def test_three_members_replicate_and_survive_their_leader(tmp_path: Path) -> None:
    network = Network()
    runtimes = await grown(tmp_path, network)
    try:
        for member, runtime in runtimes.items():
            await applied(runtime, insert(member))
            await runtime.read_barrier()
            assert runtime.database.scalar("SELECT 1 FROM t WHERE a = ?", (member,)) == 1
        for runtime in runtimes.values():
            await until(lambda now=runtime.status: {p.sqlite_version for p in now().peers} == {sqlite3.sqlite_version})
            assert runtime.status().sqlite_version == sqlite3.sqlite_version
        with pytest.raises(ForbiddenError):
            await runtimes[2].change_configuration(runtimes[2].status().configuration.target)
        first = leading(runtimes)
        del runtimes[first.member_id]
        await first.stop(handover=False)
        for member, runtime in runtimes.items():
            await applied(runtime, insert(10 + member))
        await asyncio.gather(*(r.read_barrier() for r in runtimes.values()))
        rows = {m: [tuple(r) for r in rt.database.query("SELECT * FROM t ORDER BY id")] for m, rt in runtimes.items()}
        assert len({str(r) for r in rows.values()}) == 1
        assert len(rows[next(iter(rows))]) == 5
        digests = {rt.database.scalar("SELECT digest FROM _raft") for rt in runtimes.values()}
        assert len(digests) == 1
    finally:
        await stop_all(runtimes)


async def test_leadership_is_handed_over_before_a_stop(tmp_path: Path) -> None:
    network = Network()
    runtimes = await grown(tmp_path, network)
    try:
        old = leading(runtimes)
        term = old.status().term
        await old.stop()
        del runtimes[old.member_id]
        await asyncio.gather(*(runtime.read_barrier() for runtime in runtimes.values()))
        assert leading(runtimes).status().term == term + 1
    finally:
        await stop_all(runtimes)


async def test_of_two_members_the_one_that_stops_gives_its_vote_to_the_other(tmp_path: Path) -> None:
    network = Network()
    runtimes = await grown(tmp_path, network, size=1)
    try:
        await add(tmp_path, network, runtimes, 2)
        first, second = runtimes[1], runtimes[2]
        await until(lambda: first.status().health().get(2, MemberHealth(0, 0, False)).caught_up)
        await first.restart()  # back at once: nothing changes
        await until(lambda: first.status().role is RaftRole.LEADER)
        assert first.status().configuration.voters() == {1}
        await until(lambda: first.status().health().get(2, MemberHealth(0, 0, False)).caught_up)
        await first.stop()
        await applied(second, insert(1))
        assert second.status().configuration.voters() == {2}
        await first.start()
        await first.read_barrier()
        assert first.database.scalar("SELECT a FROM t") == 1
    finally:
        await stop_all(runtimes)


async def test_without_a_majority_writes_say_who_is_missing(tmp_path: Path) -> None:
    network = Network()
    runtimes = await grown(tmp_path, network)
    try:
        survivor = runtimes.pop(3)
        await stop_all(runtimes)
        runtimes = {3: survivor}
        await until(lambda: survivor.status().leader == 0)
        with pytest.raises(UnavailableError) as caught:
            await survivor.propose(insert(1), timeout_s=0.3)
        assert not isinstance(caught.value, OutcomeUnknownError)
        assert str(caught.value).startswith("Failed to begin transaction: no leader of the database")
        assert "2 of 3 database members needed, 1 reachable (not reachable: 1 (member-1), 2 (member-2))" in str(
            caught.value
        )
        with pytest.raises(UnavailableError):
            await survivor.read_barrier(timeout_s=0.2)
        assert survivor.database.scalar(COUNT) == 0  # a stale read still works
    finally:
        await stop_all(runtimes)


async def test_a_cut_off_leader_answers_unknown_and_the_rest_goes_on(tmp_path: Path) -> None:
    network = Network()
    runtimes = await grown(tmp_path, network)
    try:
        old = leading(runtimes)
        network.cut.add(old.member_id)
        lost = asyncio.gather(old.propose(insert(1), timeout_s=0.5), return_exceptions=True)
        others = {m: r for m, r in runtimes.items() if r is not old}
        await applied(next(iter(others.values())), insert(2))
        assert isinstance((await lost)[0], OutcomeUnknownError)
        network.cut.clear()
        await until(lambda: old.database.scalar("SELECT 1 FROM t WHERE a = 2") == 1)
    finally:
        await stop_all(runtimes)


async def test_a_newcomer_behind_the_log_gets_a_snapshot(tmp_path: Path) -> None:
    network, limits = Network(), Limits(retained_entries=32, snapshot_chunk_bytes=8192)
    runtimes = await grown(tmp_path, network, size=1, limits=limits)
    try:
        leader = runtimes[1]
        for start in range(0, 500, 100):
            await asyncio.gather(*(leader.propose(insert(n)) for n in range(start, start + 100)))
        await until(lambda: leader.status().first > 300)
        topics: list[frozenset[str]] = []
        await add(tmp_path, network, runtimes, 2, limits=limits, told=topics.append)
        newcomer = runtimes[2]
        await until(lambda: newcomer.status().applied >= leader.status().commit)
        assert ALL_TOPICS in topics
        assert newcomer.database.path.name == "global-2.db"
        assert newcomer.database.scalar(COUNT) == 500
        await applied(newcomer, insert(1000))
        voters = (Member(1, "member-1"), Member(2, "member-2", Role.VOTER))
        await leader.change_configuration(voters)
        await stop_all(runtimes)
        for runtime in runtimes.values():
            await runtime.start()
        await applied(newcomer, insert(1001))
        digests = [r.database.scalar("SELECT digest FROM _raft") for r in runtimes.values()]
        await until(lambda: len({r.database.scalar("SELECT digest FROM _raft") for r in runtimes.values()}) == 1)
        assert len(digests) == 2
    finally:
        await stop_all(runtimes)


CHILD = """
import asyncio, sys
from pathlib import Path
from incus_actors.consensus.bootstrap import create_standalone
from incus_actors.consensus.lanes import NoLane
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.model.transaction import Statement, Transaction

async def main():
    directory = Path(sys.argv[1])
    if not directory.exists():
        create_standalone(directory, address="one")
    runtime = ConsensusRuntime(directory, NoLane, realtime=False)
    await runtime.start()
    await runtime.propose(Transaction((Statement(
        "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, a INTEGER) STRICT"),), schema=True))
    async def write():
        while True:
            outcome = await runtime.propose(Transaction((Statement("INSERT INTO t (a) VALUES (1) RETURNING id"),)))
            print(outcome.rows[0][0][0], flush=True)
    await asyncio.gather(*(write() for _ in range(4)))

asyncio.run(main())
"""


async def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    directory = tmp_path / "database"
    acknowledged: set[int] = set()
    for lines in (40, 90, 150):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, str(directory), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(lines):
            acknowledged.add(int(await process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        acknowledged |= {int(line) for line in (await process.stdout.read()).split(b"\n")[:-1]}
        await process.wait()
    async with standalone(directory) as runtime:
        await runtime.read_barrier()
        found = {row["id"] for row in runtime.database.query("SELECT id FROM t")}
    assert acknowledged <= found
    assert len(acknowledged) >= 280


async def test_a_core_that_contradicts_itself_stops_the_daemon_and_leaves_its_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Core):
        def _on_applied(self, event: ev.Applied) -> None:
            super()._on_applied(event)
            if event.results:
                self.commit = self.log.last + 7

    monkeypatch.setattr(engine, "Core", Broken)
    reasons: list[str] = []
    async with standalone(tmp_path) as runtime:
        runtime.on_fatal = reasons.append
        with pytest.raises(OutcomeUnknownError, match="commit <= last"):
            await runtime.propose(TABLE)
        assert reasons == ["InvariantError: member 1 term 2: commit <= last"]
        with pytest.raises(UnavailableError):
            await runtime.read_barrier()
    content = read_history(tmp_path / REPLAY_NAME)
    assert content.reason == reasons[0]
    assert content.mark is not None
    assert content.mark.whole
    steps = list(replay(content))
    assert isinstance(steps[-1].event, ev.Applied)  # the one that it broke on, which a sound core takes
    assert (steps[-1].role, steps[-1].broken) == ("leader", "")
    assert f"stopped: {reasons[0]}" in (tmp_path / HISTORY_NAME).read_text()


async def test_a_leader_lets_everybody_compare_the_whole_state_once_a_day(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        clock = ManualClock(monotonic_ms=0)
        upkeep = Upkeep(runtime.database, clock, runtime.status, runtime._propose_upkeep)
        clock.advance(CHECK_EVERY_MS - 1)
        assert not await upkeep.check_if_due()
        clock.advance(1)
        first = await runtime.check_state()
        assert await upkeep.check_if_due()
        assert not await upkeep.check_if_due()
        last = await runtime.check_state()
        assert last.index == first.index + 2
        assert last.hash != first.hash  # the answer to the first is a row that the last one sees


async def test_a_member_that_never_leads_remembers_no_more_than_it_needs(tmp_path: Path) -> None:
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        clock = ManualClock(monotonic_ms=0)
        upkeep = Upkeep(runtime.database, clock, runtime.status, runtime._propose_upkeep)
        for _ in range(100):
            clock.advance(15_000)
            upkeep.note()
        assert len(upkeep._applied) <= KEEP_MS // 15_000 + 1
        assert upkeep.settled(KEEP_MS) == upkeep.note()


async def test_an_upgrade_that_fails_puts_off_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration is data, and a low disk refuses it: to forget answers helps out of that, so it must not wait."""

    async def fails() -> bool:
        raise UnavailableError("the disk of the database is full")

    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        monkeypatch.setattr("incus_actors.consensus.upkeep.LOOK_EVERY_S", 0.01)
        clock = ManualClock(monotonic_ms=0)
        upkeep = Upkeep(runtime.database, clock, runtime.status, runtime._propose_upkeep)
        monkeypatch.setattr(upkeep.upgrade, "if_due", fails)
        clock.advance(CHECK_EVERY_MS)
        checks = runtime.status().counters.get("state_checks", 0)
        running = tasks.spawn(upkeep.run(), name="upkeep")
        try:
            await until(lambda: runtime.status().counters.get("state_checks", 0) > checks)
        finally:
            running.cancel()


async def test_a_disk_that_fails_is_told_apart_from_other_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's exit code says it, whatever else fails while everything is closed."""
    reasons: list[str] = []
    async with standalone(tmp_path / "database") as runtime:
        runtime.on_fatal = reasons.append
        await applied(runtime, TABLE)
        assert runtime.stopped_by == ""

        def fails(*_: object) -> None:
            raise LogIOError("fsync failed")

        monkeypatch.setattr(LogStore, "write", fails)
        with pytest.raises((UnavailableError, OutcomeUnknownError)):
            await runtime.propose(insert(1), timeout_s=5.0)
        await until(lambda: bool(reasons))
    assert runtime.stopped_by == "io"
