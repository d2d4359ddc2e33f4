from __future__ import annotations

import asyncio
import logging

import pytest

from incus_actors import tasks


async def test_result_and_name() -> None:
    async def work() -> int:
        assert "adding" in tasks.running()
        return 3

    assert await tasks.spawn(work(), name="adding") == 3
    await asyncio.sleep(0)
    assert "adding" not in tasks.running()


async def test_a_failure_that_nobody_awaits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("out of cheese")

    task = tasks.spawn(fail(), name="failing")
    with caplog.at_level(logging.ERROR):
        await asyncio.wait({task})
        await asyncio.sleep(0)
    assert "failing" in caplog.text
    assert "out of cheese" in caplog.text


async def test_cancellation_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    task = tasks.spawn(asyncio.sleep(100), name="sleeper")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert caplog.text == ""
    assert "sleeper" not in tasks.running()


async def test_a_task_is_held_without_a_reference() -> None:
    import gc

    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.set()

    tasks.spawn(work(), name="held")
    gc.collect()
    await asyncio.wait_for(done.wait(), 5)
