"""Operations: every way to end, what is published when, how long it is kept."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from incus_actors.errors import BadRequestError, NotFoundError
from incus_actors.gateway.events import EventHub
from incus_actors.gateway.operations import Operation, Operations


class Watched:
    """A registry and what it publishes."""

    def __init__(self, **options: Any) -> None:
        self.hub = EventHub(location=lambda: "node1")
        self.operations = Operations(self.hub, member_id=lambda: 3, location=lambda: "node1", **options)
        self.events: list[dict[str, Any]] = []
        self.hub.tap(lambda event: self.events.append(json.loads(event.encoded)["metadata"]))

    def create(self, run: Any, **options: Any) -> Operation:
        return self.operations.create(kind="task", description="Working", project="default", run=run, **options)

    @property
    def statuses(self) -> list[str]:
        return [event["status"] for event in self.events]


async def forever(_operation: Operation) -> None:
    await asyncio.sleep(3600)


async def test_progress_is_thinned_and_the_last_word_is_never_lost() -> None:
    watched = Watched()

    async def run(operation: Operation) -> None:
        for percent in range(101):
            operation.progress("download", percent, None, f"Downloading: {percent}%")
            await asyncio.sleep(0.001)

    operation = watched.create(run)
    await operation.wait()
    assert len(watched.events) < 15
    assert watched.events[-1]["metadata"] == {
        "download_progress": "Downloading: 100%",
        "progress": {"stage": "download", "percent": "100"},
    }
    before = len(watched.events)
    await asyncio.sleep(0.15)
    assert len(watched.events) == before  # nothing after the end


async def test_nothing_changes_after_the_end() -> None:
    watched = Watched()

    async def run(_operation: Operation) -> None:
        return

    operation = watched.create(run, metadata={"a": 1})
    assert await operation.wait(5)
    operation.update({"b": 2})
    operation.progress("x", 1, 2, "y")
    await operation.cancel()
    operation.finish(400, "late")
    assert watched.statuses == ["Pending", "Running", "Success"]
    assert operation.render()["metadata"] == {"a": 1}


async def test_cancelling_before_the_first_step_ends_it_too() -> None:
    watched = Watched()
    operation = watched.create(forever, may_cancel=True)
    await watched.operations.cancel(operation.id)
    assert await operation.wait(5)
    assert watched.statuses == ["Pending", "Running", "Cancelling", "Cancelled"]


async def test_a_cancel_that_is_refused_leaves_it_running() -> None:
    watched = Watched()

    async def refuse(_operation: Operation) -> None:
        raise BadRequestError("Not now")

    operation = watched.create(forever, on_cancel=refuse)
    with pytest.raises(BadRequestError, match="Not now"):
        await watched.operations.cancel(operation.id)
    assert operation.status == "Running"
    await watched.operations.stop()
    assert operation.status == "Cancelled"


async def test_a_cancel_that_lets_the_work_end_by_itself() -> None:
    watched = Watched()
    stop = asyncio.Event()

    async def run(_operation: Operation) -> None:
        await stop.wait()

    async def on_cancel(_operation: Operation) -> None:
        stop.set()

    operation = watched.create(run, on_cancel=on_cancel)
    await watched.operations.cancel(operation.id)
    assert await operation.wait(5)
    assert watched.statuses[-2:] == ["Cancelling", "Cancelled"]


async def test_work_that_swallows_its_cancellation_is_ended_for_its_watchers() -> None:
    watched = Watched()
    released = asyncio.Event()

    async def stubborn(_operation: Operation) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    operation = watched.create(stubborn)
    await asyncio.sleep(0)
    await watched.operations.stop("The daemon is shutting down", timeout_s=0.05)
    assert (operation.status, operation.err) == ("Cancelled", "The daemon is shutting down")
    released.set()
    await asyncio.sleep(0.01)
    assert watched.statuses[-1] == "Cancelled"


async def test_finished_operations_are_kept_for_a_while() -> None:
    watched = Watched(kept_s=0.05)

    async def run(_operation: Operation) -> None:
        return

    operation = watched.create(run)
    await operation.wait()
    assert watched.operations.rendered(operation.id) is not None
    await asyncio.sleep(0.1)
    assert watched.operations.rendered(operation.id) is None
    with pytest.raises(NotFoundError, match="Operation not found"):
        await watched.operations.cancel(operation.id)
