"""Recovery: what is kept, who is refused, and that no order of logs is turned around."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.bootstrap import create_standalone
from incus_actors.consensus.lanes import NoLane
from incus_actors.consensus.log_files import AmnesiaError, LogLockedError
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.recovery import (
    EPOCH_TERMS,
    TERM_JUMP,
    RecoveryError,
    give_up,
    overview,
    reconfigure,
    recover,
)
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import Configuration, Member, RaftRole, Role
from incus_actors.errors import UnavailableError
from incus_actors.model.transaction import Statement, Transaction

from .runtime_kit import TABLE, Network, add, applied, grown, insert, leading, standalone, stop_all, until

COUNT = "SELECT COUNT(*) FROM t"


async def three(root: Path, network: Network) -> dict[int, ConsensusRuntime]:
    runtimes = await grown(root, network)
    for number in range(5):
        await applied(leading(runtimes), insert(number))
    return runtimes


async def leads(runtime: ConsensusRuntime) -> None:
    await until(lambda: runtime.status().role is RaftRole.LEADER)
    await runtime.read_barrier()


async def test_one_of_three_goes_on_alone_with_everything_it_had(tmp_path: Path) -> None:
    network = Network()
    await stop_all(await three(tmp_path, network))
    before = overview(tmp_path / "2")
    done = recover(tmp_path / "2")
    after = overview(tmp_path / "2")
    assert (after.epoch, done.epoch) == (2, 2)
    assert after.term == max(before.term, before.last_term) + TERM_JUMP
    assert after.last_index == before.last_index + 1
    assert after.configuration == Configuration((Member(2, "member-2"),), None, (1, 3))
    store = LogStore(tmp_path / "2")
    assert b'"forced":true' in store.entries[-1].body
    store.close()
    assert overview(done.backup).epoch == 1
    runtime = ConsensusRuntime(tmp_path / "2", network.lane, realtime=False)
    await runtime.start()
    await leads(runtime)
    assert runtime.database.scalar(COUNT) == 5
    await applied(runtime, insert(100))
    await runtime.stop()


async def test_members_of_the_old_epoch_stop_and_say_what_to_do(tmp_path: Path) -> None:
    network = Network()
    await stop_all(await three(tmp_path, network))
    recover(tmp_path / "2")
    alive = ConsensusRuntime(tmp_path / "2", network.lane, realtime=False)
    await alive.start()
    await leads(alive)
    for number in (1, 3):
        late = ConsensusRuntime(tmp_path / str(number), network.lane, realtime=False, on_fatal=pytest.fail)
        await late.start()
        await until(lambda late=late: bool(late.status().halted))
        assert 'run "incus-actorsd cluster rejoin"' in late.status().halted
        with pytest.raises(UnavailableError, match="epoch 1 of its cluster"):
            await late.propose(insert(7))
        with pytest.raises(UnavailableError, match="epoch 2"):
            await late.read_barrier()
        assert late.database.scalar(COUNT) == 5  # it can still be looked at
        await late.stop()
        await late.start()  # also after a restart, and even if nobody is there to tell it
        assert late.status().halted
        await late.stop()
    await applied(alive, insert(200))
    await alive.stop()


async def test_a_former_member_can_do_nothing_to_the_recovered_one(tmp_path: Path) -> None:
    network = Network()
    await stop_all(await three(tmp_path, network))
    recover(tmp_path / "2")
    alive = ConsensusRuntime(tmp_path / "2", network.lane, realtime=False)
    await alive.start()
    await leads(alive)
    term = alive.status().term
    late = ConsensusRuntime(tmp_path / "1", network.lane, realtime=False)
    await late.start()
    await until(lambda: bool(late.status().halted))
    await late.stop()
    assert (alive.status().role, alive.status().term) == (RaftRole.LEADER, term)
    await add(tmp_path, network, {2: alive}, 4, epoch=2)  # and others may join
    await alive.stop()


async def test_recovering_twice_makes_a_third_epoch(tmp_path: Path) -> None:
    create_standalone(tmp_path / "1", address="one")
    assert recover(tmp_path / "1").epoch == 2
    assert recover(tmp_path / "1").epoch == 3
    async with standalone(tmp_path / "1") as runtime:
        await leads(runtime)
        assert runtime.status().epoch == 3


async def test_a_running_member_is_left_alone(tmp_path: Path) -> None:
    async with standalone(tmp_path / "1"):
        with pytest.raises(LogLockedError):
            recover(tmp_path / "1")
        with pytest.raises(LogLockedError):
            give_up(tmp_path / "1", "test")
        assert overview(tmp_path / "1").epoch == 1
    assert not list(tmp_path.glob("1.backup-*"))


def test_nothing_there_is_said(tmp_path: Path) -> None:
    for attempt in (overview, recover):
        with pytest.raises(RecoveryError, match="There is no database"):
            attempt(tmp_path / "1")


async def test_what_was_forgotten_is_only_given_up_when_asked(tmp_path: Path) -> None:
    async with standalone(tmp_path / "1") as runtime:
        await applied(runtime, TABLE)
        await applied(runtime, insert(1))
        await applied(runtime, insert(2))
    store = LogStore(tmp_path / "1")
    store._db.execute("DELETE FROM entries WHERE idx = ?", (store.last_index,))
    store.close()
    with pytest.raises(RecoveryError, match="forgotten writes that it had acknowledged"):
        recover(tmp_path / "1")
    with pytest.raises(AmnesiaError):
        await ConsensusRuntime(tmp_path / "1", NoLane, realtime=False).start()
    with pytest.raises(RecoveryError, match="--accept-data-loss"):
        recover(tmp_path / "1")  # by the marker now
    recover(tmp_path / "1", accept_damage=True)
    assert not (tmp_path / "1" / fmt.AMNESIA_NAME).exists()
    async with standalone(tmp_path / "1") as runtime:
        await leads(runtime)
        assert runtime.database.scalar(COUNT) == 2  # the state file still had it
        await applied(runtime, insert(3))


async def test_a_member_that_was_removed_is_no_place_to_recover_from(tmp_path: Path) -> None:
    network = Network()
    runtimes = await three(tmp_path, network)
    left = tuple(m for m in runtimes[1].status().configuration.old if m.id != 3)
    await until(lambda: runtimes[1].status().role is RaftRole.LEADER)
    await runtimes[1].change_configuration(left)
    await until(lambda: 3 not in runtimes[3].status().configuration.members())
    await stop_all(runtimes)
    with pytest.raises(RecoveryError, match="removed or replaced"):
        recover(tmp_path / "3")
    assert not list(tmp_path.glob("3.backup-*"))


RENAMES = Transaction((Statement("INSERT INTO t (a) VALUES (?)", (4711,)),), topics=("members",))


async def test_the_same_edit_everywhere_is_one_cluster_again(tmp_path: Path) -> None:
    network = Network()
    await stop_all(await three(tmp_path, network))
    target = tuple(
        replace(m, address=f"moved-{m.id}", role=Role.STANDBY if m.id == 3 else Role.VOTER)
        for m in overview(tmp_path / "1").configuration.old
    )
    for number in (1, 2, 3):
        done = reconfigure(tmp_path / str(number), target, RENAMES)
        assert done.epoch == 2
        assert done.term >= 2 * EPOCH_TERMS
    runtimes = {n: ConsensusRuntime(tmp_path / str(n), network.lane, realtime=False) for n in (1, 2, 3)}
    for runtime in runtimes.values():
        await runtime.start()
    await until(lambda: any(r.status().role is RaftRole.LEADER for r in runtimes.values()))
    leader = leading(runtimes)
    assert leader.status().configuration.old == target
    await applied(leader, insert(9))
    for runtime in runtimes.values():
        await runtime.read_barrier()
        assert runtime.database.scalar(COUNT) == 7
        assert runtime.database.scalar("SELECT COUNT(*) FROM t WHERE a = 4711") == 1
    await stop_all(runtimes)


async def test_an_edit_keeps_what_a_majority_had_although_a_shorter_log_had_more_elections(tmp_path: Path) -> None:
    network = Network()
    runtimes = await three(tmp_path, network)
    await runtimes[3].stop(handover=False)
    await applied(leading(runtimes), insert(77))  # committed by 1 and 2 only
    await stop_all({n: runtimes[n] for n in (1, 2)})
    store = LogStore(tmp_path / "3")  # 3 campaigned in vain, many times
    fmt.write_hard(store._db, replace(store.hard, term=store.hard.term + 50, vote=3))
    store.close()
    target = overview(tmp_path / "1").configuration.old
    for number in (1, 2, 3):
        reconfigure(tmp_path / str(number), target, None)
    pair = {n: ConsensusRuntime(tmp_path / str(n), network.lane, realtime=False) for n in (2, 3)}
    for runtime in pair.values():
        await runtime.start()
    await until(lambda: pair[2].status().role is RaftRole.LEADER)
    await pair[2].read_barrier()
    assert pair[2].database.scalar("SELECT COUNT(*) FROM t WHERE a = 77") == 1
    await stop_all(pair)


def test_a_log_that_is_nothing_any_more_says_so(tmp_path: Path) -> None:
    create_standalone(tmp_path / "1", address="one")
    (tmp_path / "1" / "log.db").write_bytes(b"junk" * 1024)
    with pytest.raises(RecoveryError, match="repeat this with --accept-data-loss"):
        recover(tmp_path / "1")
    hopeless = r"not a database\. Nothing can be made of this log: restore a copy of"
    with pytest.raises(RecoveryError, match=hopeless):
        recover(tmp_path / "1", accept_damage=True)
    with pytest.raises(RecoveryError, match=hopeless):
        overview(tmp_path / "1")
    assert not list(tmp_path.glob("1.backup-*"))
