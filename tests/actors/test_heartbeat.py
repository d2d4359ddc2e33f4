"""The table of heartbeats: ages, skew, restarts. The actor's traffic is tested with two systems."""

from __future__ import annotations

from typing import Any

import pytest

from incus_actors.actors.heartbeat import Beat, HeartbeatTable
from incus_actors.actors.host_facts import read_host_facts
from incus_actors.actors.messages import decode_message, encode_message


class Clocks:
    """Two hands that a test moves."""

    def __init__(self) -> None:
        self.mono_s = 1000.0
        self.wall_ns = 1_700_000_000_000_000_000

    def advance(self, seconds: float) -> None:
        self.mono_s += seconds
        self.wall_ns += int(seconds * 1e9)


def beat(member_id: int = 2, **changes: Any) -> Beat:
    fields: dict[str, Any] = {
        "member_id": member_id,
        "incarnation": 1,
        "sent_us": 5,
        "wall_us": 1_700_000_000_000_000,
        "applied": 7,
        "version": "1",
        "schema": 1,
        "api_extensions": 1,
        "uptime_s": 1,
        "load": (0.0, 0.0, 0.0),
        "total_ram": 1,
        "available_ram": 1,
        "instances": 0,
        "running": 0,
    }
    return Beat(**{**fields, **changes})


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def table(clocks):
    return HeartbeatTable(monotonic_s=lambda: clocks.mono_s, wall_ns=lambda: clocks.wall_ns)


def test_age_counts_from_the_last_beat(table, clocks):
    table.record(beat(), own_id=1)
    seen = clocks.wall_ns
    clocks.advance(20.5)
    sighting = table.sighting(2, 1)
    assert sighting.age_s == pytest.approx(20.5)
    assert sighting.wall_ns == seen
    assert not table.online(2, 1, 20)
    assert table.online(1, 1, 20)


def test_a_member_never_heard_of_counts_from_our_start(table, clocks):
    clocks.advance(5)
    assert table.online(3, 1, 20)
    clocks.advance(16)
    assert not table.online(3, 1, 20)


def test_a_watched_member_counts_from_its_addition(table, clocks):
    clocks.advance(100)
    table.watch(3)
    assert table.online(3, 1, 20)
    table.forget([2])
    assert 3 not in table.view()


def test_skew_and_round_trip_are_measured_without_trusting_the_other_clock(table, clocks):
    sent_us = int(clocks.mono_s * 1e6)
    clocks.advance(0.110)  # 5 ms there, held for 100 ms, 5 ms back
    ahead_us = 3_000_000
    their_wall_us = clocks.wall_ns // 1000 - 5_000 + ahead_us
    health = table.record(beat(wall_us=their_wall_us, echoes=((1, sent_us, 100_000),)), own_id=1)
    assert health.round_trip_ms == pytest.approx(10, abs=0.1)
    assert health.skew_ms == pytest.approx(3000, abs=0.2)


def test_an_echo_from_before_our_start_measures_nothing(table):
    health = table.record(beat(echoes=((1, 10**15, 0), (1, 0, 0))), own_id=1)
    assert health.skew_ms is None


def test_restarts_and_intervals_are_counted(table, clocks):
    table.record(beat(), own_id=1)
    clocks.advance(1)
    table.record(beat(), own_id=1)
    clocks.advance(1.5)
    table.record(beat(incarnation=2), own_id=1)
    health = table.view()[2]
    assert list(health.intervals_s) == pytest.approx([1, 1.5])
    assert health.restarts == 1


def test_echoes_are_only_of_those_heard_lately(table, clocks):
    table.record(beat(sent_us=77), own_id=1)
    clocks.advance(2)
    assert table.echoes([2, 3]) == ((2, 77, 2_000_000),)
    clocks.advance(60)
    assert table.echoes([2]) == ()


def test_a_beat_travels():
    tag, body = encode_message(beat(echoes=((1, 2, 3),)))
    assert decode_message(tag, body) == beat(echoes=((1, 2, 3),))


def test_host_facts(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 400 kB\nBuffers: 3 kB\nShmem: 2 kB\nHugePages: x\n")
    (tmp_path / "uptime").write_text("123.45 99.0\n")
    (tmp_path / "loadavg").write_text("0.50 1.25 2.00 3/248 999\n")
    facts = read_host_facts(tmp_path)
    assert (facts.total_ram, facts.free_ram, facts.buffered_ram, facts.shared_ram) == (1024000, 409600, 3072, 2048)
    assert (facts.uptime_s, facts.load, facts.processes) == (123, (0.5, 1.25, 2.0), 248)
    assert read_host_facts().total_ram > 0
