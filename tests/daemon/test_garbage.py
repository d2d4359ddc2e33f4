"""When garbage is collected, as a rule and on a loop."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest

from incus_actors.daemon import garbage
from incus_actors.daemon.garbage import IdleCollector, due


@pytest.mark.parametrize(
    ("counts", "late_ms", "since_full_s", "generation"),
    [
        ((10, 0, 0), 0.1, 5, None),  # nothing worth it
        ((1_000, 0, 0), 0.1, 5, 0),  # a gap: take what is there
        ((1_000, 10, 0), 0.1, 5, 1),
        ((10, 10, 0), 0.1, 5, 1),
        ((1_000, 10, 10), 0.1, 5, 1),  # the last full one was just now
        ((1_000, 0, 10), 0.1, 10, 2),
        ((10, 0, 10), 0.1, 10, 2),
        ((1_000, 10, 10), 8, 30, None),  # busy: it waits for a gap
        ((19_999, 10, 0), 8, 5, None),
        ((20_000, 0, 0), 8, 5, 0),  # ... but not for ever
        ((20_000, 10, 0), 8, 5, 1),
        ((10, 0, 10), 8, 119, None),
        ((10, 0, 10), 8, 120, 2),
    ],
)
def test_the_rule(counts: tuple[int, int, int], late_ms: float, since_full_s: float, generation: int | None) -> None:
    assert due(counts, late_ms=late_ms, since_full_s=since_full_s) == generation


class Cycle:
    def __init__(self) -> None:
        self.me = self


def cycles(count: int) -> list[weakref.ref[Cycle]]:
    return [weakref.ref(Cycle()) for _ in range(count)]


async def test_garbage_goes_in_a_gap_and_under_load_when_there_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOK_S", 0.01)
    collector = IdleCollector()
    collector.start()
    try:
        assert not gc.isenabled()
        made = cycles(2 * garbage.YOUNG)
        assert all(ref() is not None for ref in made), "nothing is collected by allocating"
        async with asyncio.timeout(20):
            while any(ref() is not None for ref in made):
                await asyncio.sleep(0.01)
        made = cycles(garbage.MOST_YOUNG)
        async with asyncio.timeout(20):
            while any(ref() is not None for ref in made):
                time.sleep(0.03)  # the loop has no gap
                await asyncio.sleep(0)
    finally:
        await collector.stop()
    assert gc.isenabled()
    gc.unfreeze()
