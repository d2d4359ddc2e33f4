"""What a core heard can be stepped again, from the start or from the middle, and does the same again."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from consensus.harness import FAR, World, pid

from incus_actors.cli.simulate import simulate
from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import history as history_module
from incus_actors.consensus.history import Heard, History
from incus_actors.consensus.history_file import HistoryError, decode_history, encode_history, read_history
from incus_actors.consensus.last_words import REPLAY_NAME, write_history
from incus_actors.consensus.messages import Envelope, SnapshotChunk
from incus_actors.consensus.state_mark import is_quiet, mark_of
from incus_actors.consensus.types import EntryKind, Limits, RaftRole
from incus_actors.simulation.replay import beginning, replay


class Recorded(World):
    """A world that remembers what each core heard and did."""

    def start(self, member: int):  # type: ignore[no-untyped-def]
        machine = self.machines[member]
        machine.durable = replace(machine.durable, sqlite_version=f"3.{40 + member}.0")
        core = super().start(member)
        self.__dict__.setdefault("histories", {})[member] = History(
            lambda whole: mark_of(core, core.rng, whole=whole), lambda: is_quiet(core)
        )
        self.__dict__.setdefault("did", {})[member] = []
        return core

    def step(self, member: int, event: ev.Event) -> list[fx.Effect]:
        core = self.cores[member]
        self.histories[member].add(self.now, event)
        place = len(self.did[member])
        self.did[member].append(())
        original = core.step

        def step(now_ms: int, heard: ev.Event) -> list[fx.Effect]:
            effects = original(now_ms, heard)
            self.did[member][place] = tuple(effects)
            return effects

        core.step = step  # type: ignore[method-assign]
        try:
            return super().step(member, event)
        finally:
            core.step = original  # type: ignore[method-assign]


def lived(seed: int = 1, *, limits: Limits | None = None) -> Recorded:
    """Three members: an election, writes, a member that is away for a while, another leader, more writes."""
    world = Recorded(3, seed=seed, limits=limits)
    world.elect(1)
    number = 0
    for round_ in range(6):
        leader = next(m for m, core in world.cores.items() if core.role is RaftRole.LEADER)
        for _ in range(5):
            number += 1
            wish = ev.Propose(pid(number), EntryKind.SQL, b"x" * number, world.now, FAR)
            world.step(leader, wish)
            world.run(30)
        if round_ == 2:
            world.isolate(3)
            world.run(400)
            world.heal()
        world.step(3, ev.LinkUp(leader))
        if round_ == 3:
            world.step(leader, ev.Transfer(7, 2))
        world.run(900)
    return world


def through_a_file(history: History) -> list[tuple[fx.Effect, ...]]:
    content = decode_history(encode_history("a test", *history.replayable()))
    steps = list(replay(content))
    assert [step.broken for step in steps if step.broken] == []
    return [step.effects for step in steps]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_from_the_start_every_core_does_exactly_the_same_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "EVENTS_KEPT", 1 << 20)
    world = lived(seed)
    for member, history in world.histories.items():
        assert history.replayable()[0].whole
        again = through_a_file(history)
        assert len(again) == len(world.did[member]) > 500
        assert again == world.did[member]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_from_the_middle_too_when_nothing_was_under_way(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "EVENTS_KEPT", 400)
    monkeypatch.setattr(history_module, "MARK_EVERY", 100)
    world = lived(seed)
    roles = set()
    for member, history in world.histories.items():
        mark, events = history.replayable()
        assert mark is not None
        assert not mark.whole
        assert mark.quiet
        assert 250 <= len(events) <= 400
        assert "in the middle of its life" in beginning(mark)
        roles.add(mark.role)
        assert through_a_file(history) == world.did[member][-len(events) :]
    assert roles == {RaftRole.LEADER, RaftRole.FOLLOWER}


def test_large_entries_shorten_the_history_and_bytes_of_snapshots_are_not_kept() -> None:
    history = History(lambda _whole: None, lambda: True)
    for number in range(20):
        history.add(number, ev.Propose(pid(number), EntryKind.SQL, b"x" * (1 << 20), 0, 0))
    assert len(history.all()) == 4
    chunk = Envelope(1, b"cluster!", 1, 2, 1, 1, 1, SnapshotChunk("s", 0, b"y" * 1000, 5))
    history.add(21, ev.Receive(chunk))
    kept = decode_history(encode_history("", None, history.all()[-1:])).events[0]
    assert kept.event.envelope.message.data == b""
    assert history_module.whole(kept).envelope.message.data == bytes(1000)


def written(directory: Path, world: Recorded, member: int) -> Path:
    write_history(directory, world.histories[member], "commit went back")
    return directory / REPLAY_NAME


def test_the_command_prints_what_each_step_did(tmp_path: Path) -> None:
    world = lived()
    path = written(tmp_path, world, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    found = CliRunner().invoke(simulate, ["--history", str(path)])
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert lines[0] == "stopped: commit went back"
    assert lines[1].startswith("member 1 of epoch 1: follower in term 0, leader unknown")
    assert any("-> leader term 1" in line and "WriteLog" in line for line in lines)
    assert not any("HeartbeatResponse term 1" in line for line in lines)
    more = CliRunner().invoke(simulate, ["--history", str(path), "--quiet-steps"]).output.splitlines()
    assert any("HeartbeatResponse term 1" in line and "from 2 -> leader term 1" in line for line in more)
    assert "of them without an effect are not shown" in lines[-1]


def test_a_core_that_fails_again_is_shown_and_is_an_error(tmp_path: Path) -> None:
    world = lived()
    mark, events = world.histories[1].replayable()
    events = [*events, Heard(world.now, ev.Applied(1 << 40, b"d"))]
    path = tmp_path / "h"
    path.write_bytes(encode_history("InvariantError", mark, events))
    found = CliRunner().invoke(simulate, ["--history", str(path)])
    assert found.exit_code == 1
    assert "FAILED InvariantError: member 1" in found.output


def test_broken_and_hostile_files_are_refused_in_words(tmp_path: Path) -> None:
    world = lived()
    data = written(tmp_path, world, 2).read_bytes()
    path = tmp_path / "broken"
    rng = random.Random(5)
    for bad in (b"", b"\x00", b"no history", data[: len(data) // 2], b"\x81\xa6format\x02", b"\x81" * 5000):
        path.write_bytes(bad)
        with pytest.raises(HistoryError, match="is no history of consensus"):
            read_history(path)
        found = CliRunner().invoke(simulate, ["--history", str(path)])
        assert (found.exit_code, "is no history of consensus" in found.output) == (1, True)
    for _ in range(200):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        try:
            for _ in replay(decode_history(bytes(mutated))):
                pass
        except HistoryError:
            continue
    with pytest.raises(HistoryError, match="unknown event 'Explode'"):
        decode_history(encode_history("", None, [Heard(0, type("Explode", (ev.Tick,), {})(1))]))
    with pytest.raises(HistoryError, match="from which state"):
        list(replay(decode_history(encode_history("", None, []))))
