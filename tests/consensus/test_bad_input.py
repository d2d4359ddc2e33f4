"""Bad input at every door of the log is refused with a reason, counted, and changes nothing (issue 3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from incus_actors.consensus import messages as msg
from incus_actors.consensus.messages import PROTOCOL_VERSION, Envelope
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import EntryKind, Member, Role
from incus_actors.errors import BadRequestError
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.state.codec import encode_transaction

from .runtime_kit import CLUSTER, Network, applied, grown, insert, standalone, stop_all, until

PID = bytes(16)


def refused(runtime: ConsensusRuntime, status: str) -> int:
    return runtime.status().counters.get(f"proposals_refused,status={status}", 0)


@pytest.mark.parametrize(
    ("transaction", "proposal_id", "status", "why"),
    [
        (Transaction((Statement("INSERT INTO a SELECT * FROM b"),)), None, "nondeterministic", "ORDER BY"),
        (Transaction((Statement("PRAGMA user_version = 3"),)), None, "nondeterministic", "refused"),
        (Transaction((Statement("DROP TABLE a"),)), None, "nondeterministic", "only a schema transaction"),
        (Transaction((Statement("INSERT INTO a VALUES (?)", (b"x" * 2_000_000,)),)), None, "too_large", "too large"),
        (Transaction((Statement("INSERT INTO a VALUES (?)", (2**63,)),)), None, "malformed", "64 bits"),
        (insert(1), b"short", "invalid", "16 bytes"),
    ],
)
async def test_a_local_proposal_is_refused_and_counted(
    tmp_path: Path, transaction: Transaction, proposal_id: bytes | None, status: str, why: str
) -> None:
    async with standalone(tmp_path / "database") as runtime:
        await runtime.read_barrier()
        last = runtime.status().last
        for _ in range(2):
            with pytest.raises(BadRequestError, match=why):
                await runtime.propose(transaction, proposal_id=proposal_id)
        assert refused(runtime, status) == 2
        assert runtime.status().last == last


async def test_what_a_function_says_differently_everywhere_is_made_the_same(tmp_path: Path) -> None:
    """Not refused but overridden: also where no lint sees it, in the default of a column."""
    network = Network()
    runtimes = await grown(tmp_path, network)
    try:
        await applied(runtimes[2], Transaction((Statement("INSERT INTO t (a) VALUES (abs(random() % 1000))"),)))
        found = []
        for runtime in runtimes.values():
            await runtime.read_barrier()
            found.append(tuple(runtime.database.query("SELECT a, at FROM t")[0]))
        assert found == [found[0]] * 3
    finally:
        await stop_all(runtimes)


async def test_proposals_of_others(tmp_path: Path) -> None:
    """From another cluster, another epoch, a stranger; too large, of a wrong kind; and one with a body of rubbish."""
    network = Network()
    runtimes = await grown(tmp_path, network)
    leader = runtimes[1]
    incarnation = 0

    def listen(envelope: Envelope) -> None:
        nonlocal incarnation
        incarnation = envelope.incarnation

    lane, spy = network.lanes[1], network.lanes[1].arrived

    def arrived(envelope: Envelope) -> None:
        if envelope.source == 2:
            listen(envelope)
        spy(envelope)

    lane.arrived = arrived  # type: ignore[method-assign]
    good = Envelope(
        PROTOCOL_VERSION, CLUSTER[:8], 1, 2, 1, 0, leader.status().term,
        msg.Propose(PID, EntryKind.SQL, encode_transaction(insert(77)), 0),
    )  # fmt: skip

    def dropped(reason: str) -> int:
        return leader.status().counters.get(f"messages_dropped,reason={reason}", 0)

    def send(envelope: Envelope) -> None:
        lane.later(spy, envelope)

    try:
        await until(lambda: incarnation != 0)
        good = replace(good, incarnation=incarnation)
        last = leader.status().last
        for reason, bad in (
            ("cluster", replace(good, cluster_id=b"stranger")),
            ("unknown_member", replace(good, source=9)),
            ("epoch", replace(good, epoch=7)),
            ("version", replace(good, version=99)),
            ("destination", replace(good, destination=3)),
        ):
            before = dropped(reason)
            send(bad)
            await until(lambda reason=reason, before=before: dropped(reason) > before)  # type: ignore[misc]
        for status, message in (
            ("invalid", msg.Propose(PID, EntryKind.CONFIG, b"{}", 0)),
            ("invalid", msg.Propose(PID, EntryKind.FEATURE, b"{}", 0)),
            ("invalid", msg.Propose(b"short", EntryKind.SQL, b"", 0)),
            ("too_large", msg.Propose(PID, EntryKind.SQL, bytes(2_000_000), 0)),
        ):
            before = refused(leader, status)
            send(replace(good, message=message))
            await until(lambda status=status, before=before: refused(leader, status) > before)  # type: ignore[misc]
        assert leader.status().last == last
        send(replace(good, message=msg.Propose(b"r" * 16, EntryKind.SQL, b"\xffrubbish", 0)))
        await until(lambda: leader.status().counters.get("proposals_malformed", 0) == 1)
        await applied(leader, insert(5))
        for runtime in runtimes.values():
            await runtime.read_barrier()
            assert [row[0] for row in runtime.database.query("SELECT a FROM t")] == [5]
    finally:
        await stop_all(runtimes)


async def test_a_removed_member_proposes_in_vain(tmp_path: Path) -> None:
    network = Network()
    runtimes = await grown(tmp_path, network)
    try:
        remaining = tuple(Member(m, f"member-{m}", Role.VOTER) for m in (1, 2))
        network.cut.add(3)  # it never hears that it is removed
        await runtimes[1].change_configuration((remaining[0], replace(remaining[1], role=Role.STANDBY)))
        await until(lambda: 3 in runtimes[1].status().configuration.removed)
        network.cut.clear()
        last = runtimes[1].status().last
        key = "messages_dropped,reason=unknown_member"
        durable = msg.Propose(PID, EntryKind.SQL, encode_transaction(insert(66)), 0)
        lane = network.lanes[1]
        await until(lambda: runtimes[1].status().commit == last)
        before = runtimes[1].status().counters.get(key, 0)
        envelope = Envelope(PROTOCOL_VERSION, CLUSTER[:8], 1, 3, 1, 1, runtimes[1].status().term, durable)
        await until(lambda: 3 not in {peer.id for peer in runtimes[1].status().peers})

        def gone() -> bool:
            lane.later(lane.arrived, envelope)
            return runtimes[1].status().counters.get(key, 0) > before

        await until(gone)
        await applied(runtimes[1], insert(5))
        assert [row[0] for row in runtimes[1].database.query("SELECT a FROM t")] == [5]
    finally:
        await stop_all(runtimes)
