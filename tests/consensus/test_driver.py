"""The order of effects: nothing leaves before it is durable, nothing is applied before it is durable."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pytest

from incus_actors.clock import ManualClock
from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.apply_thread import ApplyDone, ApplyTrouble
from incus_actors.consensus.driver import TICK_MS, Driver, DriverError
from incus_actors.consensus.history import History
from incus_actors.consensus.lane import LaneListener
from incus_actors.consensus.log_format import STATE_SUSPECT_NAME
from incus_actors.consensus.log_thread import JobDone, LogDone, LogTrouble
from incus_actors.consensus.messages import Envelope, Goodbye
from incus_actors.consensus.notices import AppliedNotice, FatalNotice, Notice
from incus_actors.consensus.types import Configuration, Entry, EntryKind, HardState, Member, MemberId
from incus_actors.state.apply import Batch
from incus_actors.state.position import Position


def entry(index: int) -> Entry:
    return Entry(index, 1, EntryKind.NOOP, index, b"", b"", b"\0" * 8)


def message(word: str) -> fx.Send:
    return fx.Send(Envelope(1, b"cluster!", 1, 1, 2, 1, 1, Goodbye(word, 0)))


def write(write_id: int, *indexes: int, then: Iterable[fx.Send] = (), truncate: int | None = None) -> fx.WriteLog:
    return fx.WriteLog(write_id, 0, HardState(1, 1), truncate, tuple(entry(i) for i in indexes), 0, tuple(then))


class Script:
    """A core that says what it was told to say, and notes what it heard."""

    def __init__(self, trace: list[str]) -> None:
        self.trace = trace
        self.answers: deque[list[fx.Effect]] = deque()
        self.heard: list[ev.Event] = []
        self.deadline_ms = 1 << 62

    def step(self, _now_ms: int, event: ev.Event, /) -> list[fx.Effect]:
        self.heard.append(event)
        self.trace.append(f"step {type(event).__name__}")
        return self.answers.popleft() if self.answers else []

    def next_deadline_ms(self) -> int:
        return self.deadline_ms


class Recorder:
    """Log, state, lane and main loop in one: everything that leaves the driver, in order."""

    def __init__(self, trace: list[str]) -> None:
        self.trace = trace
        self.notices: list[Notice] = []

    async def start(self, listener: LaneListener) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def send(self, envelope: Envelope, *, bulk: bool = False) -> None:
        assert isinstance(envelope.message, Goodbye)
        self.trace.append(f"send {envelope.message.why}")

    def set_peers(self, members: Iterable[Member], own_id: MemberId) -> None:
        self.trace.append(f"peers {[member.id for member in members]} of {own_id}")

    def drain(self) -> None:
        self.trace.append("drain")

    def refusing(self) -> frozenset[MemberId]:
        return frozenset()

    def links(self) -> frozenset[MemberId]:
        return frozenset()

    def depth(self) -> int:
        return 0

    def tell(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.trace.append(f"tell {type(notice).__name__}")


class Log(Recorder):
    def witness_lag(self) -> int:
        return 0

    def submit(self, effect: fx.WriteLog) -> None:
        self.trace.append(f"write {effect.write_id}")


class State(Recorder):
    def submit(self, entries: tuple[Entry, ...]) -> None:
        self.trace.append(f"apply {entries[0].index}-{entries[-1].index}")


class Rig:
    def __init__(self, directory: Path) -> None:
        self.trace: list[str] = []
        self.core = Script(self.trace)
        self.clock = ManualClock()
        self.armed: list[int] = []
        self.main = Recorder(self.trace)
        self.driver = Driver(
            self.core,
            log=Log(self.trace),
            state=State(self.trace),
            lane=self.main,
            clock=self.clock,
            durable_index=0,
            applied_index=0,
            own_id=1,
            directory=directory,
            history=History(lambda _whole: None, lambda: True),
            tell=self.main.tell,
            drain=lambda: self.trace.append("inbox"),
            publish=lambda: None,
            arm=self.armed.append,
        )

    def say(self, *effects: fx.Effect) -> None:
        self.core.answers.append(list(effects))
        self.driver.handle(ev.Tick(0))

    def done(self, write_id: int) -> None:
        self.driver.receive(LogDone(write_id, 1, 0.0, 0.0))

    def seen(self) -> list[str]:
        trace = [line for line in self.trace if line != "step Tick"]
        self.trace.clear()
        return trace


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_what_depends_on_a_write_leaves_after_it_and_after_the_core_knows(rig: Rig) -> None:
    rig.say(write(1, 1, then=[message("vote")]), message("free"))
    assert rig.seen() == ["write 1", "send free"]
    rig.done(1)
    assert rig.seen() == ["step LogWritten", "send vote"]


def test_one_commit_releases_every_write_up_to_it_in_order(rig: Rig) -> None:
    rig.say(write(1, 1, then=[message("a")]))
    rig.say(write(2, 2, then=[message("b")]))
    rig.say(write(3, 3, then=[message("c")]))
    rig.seen()
    rig.done(2)
    assert rig.seen() == ["step LogWritten", "send a", "send b"]
    rig.done(3)
    assert rig.seen() == ["step LogWritten", "send c"]


def test_a_failed_write_releases_nothing_and_stops_everything(rig: Rig) -> None:
    rig.say(write(1, 1, then=[message("ack")]))
    rig.seen()
    rig.driver.receive(LogTrouble(1, "io", "disk on fire"))
    assert rig.seen() == ["step LogFailed", "tell FatalNotice"]
    assert rig.main.notices[-1] == FatalNotice("log.db can't be written: disk on fire", "io")
    rig.done(1)
    rig.say(message("more"))
    assert rig.seen() == []


def test_a_full_disk_is_told_once_and_the_write_still_counts_later(rig: Rig) -> None:
    rig.say(write(1, 1, then=[message("ack")]))
    rig.seen()
    rig.driver.receive(LogTrouble(1, "full", "no space"))
    rig.driver.receive(LogTrouble(1, "full", "no space"))
    assert rig.seen() == ["step LogFailed"]
    rig.done(1)
    assert rig.seen() == ["step LogWritten", "send ack"]


def test_nothing_is_applied_that_is_not_durable_here(rig: Rig) -> None:
    rig.say(write(1, 1, 2))
    with pytest.raises(DriverError, match="only 0 is durable"):
        rig.say(fx.Apply((entry(1),)))
    assert isinstance(rig.main.notices[-1], FatalNotice)


def test_nothing_is_applied_twice_or_out_of_order(rig: Rig) -> None:
    rig.say(write(1, 1, 2, 3))
    rig.done(1)
    rig.say(fx.Apply((entry(1), entry(2))))
    assert rig.seen()[-1] == "apply 1-2"
    with pytest.raises(DriverError, match="after 2"):
        rig.say(fx.Apply((entry(2),)))


def test_a_truncation_takes_back_what_was_durable(rig: Rig) -> None:
    rig.say(write(1, 1, 2, 3))
    rig.done(1)
    rig.say(write(2, truncate=2))
    rig.done(2)
    assert rig.driver.durable_index == 1
    with pytest.raises(DriverError, match="only 1 is durable"):
        rig.say(fx.Apply((entry(1), entry(2))))


def test_topics_are_told_before_the_proposer_gets_its_answer(rig: Rig) -> None:
    rig.core.answers.append([fx.Resolve(b"p", "applied", 1)])
    rig.driver.receive(ApplyDone(Batch(Position(index=1), topics={"config"}), 1, 0.1))
    assert rig.seen() == ["tell AppliedNotice", "step Applied", "tell Resolve"]
    assert rig.main.notices[0] == AppliedNotice(1, frozenset({"config"}))


def test_a_tick_reads_everything_that_waits_before_the_core_decides(rig: Rig) -> None:
    rig.driver.tick()
    assert rig.trace == ["drain", "inbox", "step Tick"]


def test_ticks_come_when_the_core_wants_them_and_at_least_now_and_then(rig: Rig) -> None:
    rig.driver.tick()
    assert rig.armed == [TICK_MS]
    rig.core.deadline_ms = 15
    rig.driver.handle(ev.LinkUp(2))
    assert rig.armed == [TICK_MS, 15]
    rig.driver.handle(ev.LinkUp(2))
    assert rig.armed == [TICK_MS, 15]
    rig.clock.advance(15)
    rig.core.deadline_ms = 3
    rig.driver.tick()
    assert rig.armed[-1] == 16


def test_our_own_stall_is_reported_before_the_tick(rig: Rig) -> None:
    rig.driver.tick()
    rig.trace.clear()
    rig.clock.advance(TICK_MS + 390)
    rig.driver.tick()
    assert rig.trace[0] == "step Stalled"
    assert rig.core.heard[1] == ev.Stalled(390)
    assert "stalls" not in rig.driver.counters  # the core counts it, with what it forgave
    rig.trace.clear()
    rig.clock.advance(TICK_MS + 40)
    rig.driver.tick()
    assert "step Stalled" not in rig.trace


def test_an_event_that_an_effect_leads_to_waits_for_the_effects_before_it(rig: Rig) -> None:
    class Eager:
        def carry_out(self, _effect: object) -> None:
            rig.driver.handle(ev.Compacted(1))

    rig.driver.maintenance = Eager()
    rig.say(fx.Compact(1), message("after"))
    assert rig.seen() == ["send after", "step Compacted"]


def test_a_new_configuration_changes_the_peers_before_anyone_is_told(rig: Rig) -> None:
    both = Configuration((Member(1, "a"), Member(2, "b")))
    rig.say(fx.ConfigurationChanged(both, 4, committed=False))
    assert rig.seen() == ["peers [2] of 1", "tell ConfigurationChanged"]


def test_a_core_that_fails_stops_the_process(rig: Rig) -> None:
    class Broken:
        def step(self, _now_ms: int, _event: ev.Event, /) -> list[fx.Effect]:
            raise AssertionError("commit went back")

    rig.driver._core = Broken()
    with pytest.raises(AssertionError):
        rig.driver.handle(ev.Tick(0))
    assert rig.main.notices == [FatalNotice("AssertionError: commit went back", "fatal")]


def test_applying_that_fails_stops_the_process_but_a_full_disk_does_not(rig: Rig, tmp_path: Path) -> None:
    rig.driver.receive(ApplyTrouble("full", "no space"))
    assert not rig.driver.dead
    rig.driver.receive(ApplyTrouble("fatal", "entry of kind 9"))
    assert rig.driver.dead
    assert not (tmp_path / STATE_SUSPECT_NAME).exists()


def test_a_state_found_damaged_while_applying_leaves_word_for_the_next_start(rig: Rig, tmp_path: Path) -> None:
    rig.driver.receive(ApplyTrouble("damaged", "database disk image is malformed"))
    assert rig.driver.dead
    assert "malformed" in (tmp_path / STATE_SUSPECT_NAME).read_text()


def test_write_ids_only_grow(rig: Rig) -> None:
    rig.say(write(2, 1))
    with pytest.raises(DriverError, match="comes after 2"):
        rig.say(write(2, 2))


def test_a_job_whose_result_is_impossible_stops_the_process(rig: Rig) -> None:
    def impossible() -> None:
        raise DriverError("installed twice")

    with pytest.raises(DriverError):
        rig.driver.receive(JobDone(impossible))
    assert rig.main.notices == [FatalNotice("DriverError: installed twice", "fatal")]


def test_a_burnt_id_is_remembered_for_the_next_start(rig: Rig) -> None:
    rig.say(fx.Fatal("the leader finds this member diverged", "amnesia"))
    assert rig.driver.dead
    assert (rig.driver._directory / "amnesia").read_text() == "the leader finds this member diverged\n"
    assert rig.main.notices == [FatalNotice("the leader finds this member diverged", "amnesia")]


def test_a_member_of_an_old_epoch_halts_but_lives(rig: Rig) -> None:
    rig.say(fx.Fatal("1 2 7", "superseded"))
    assert rig.driver.dead
    assert "epoch 1 of its cluster, which was recovered without it: member 7 is of epoch 2" in rig.driver.halted
    assert (rig.driver._directory / "superseded").read_text().strip() == rig.driver.halted
    assert rig.main.notices == [FatalNotice(rig.driver.halted, "superseded")]
