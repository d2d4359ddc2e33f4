"""Waiting for the members' shares: until the rows say so, a reason comes up, or nobody who is missing is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from incus_actors.errors import MemberError
from incus_actors.services.member_wait import MemberWait
from incus_actors.tasks import spawn


class Cluster:
    """Consensus and database at once: every member is linked, its address is made of its id."""

    def __init__(self) -> None:
        self.subscribers: list[Callable[[int, frozenset[str]], None]] = []

    def status(self) -> Any:
        return SimpleNamespace(member_id=1, peers=[SimpleNamespace(id=member, link=True) for member in (2, 3)])

    def subscribe_applied(self, callback: Callable[[int, frozenset[str]], None]) -> Callable[[], None]:
        self.subscribers.append(callback)
        return lambda: self.subscribers.remove(callback)

    def applied(self, topic: str) -> None:
        for subscriber in self.subscribers:
            subscriber(7, frozenset({topic}))

    def scalar(self, _sql: str, parameters: tuple[int]) -> str:
        return f"10.0.0.{parameters[0]}:8443"

    def wait(self, *, members_s: float = 20.0, **more: Any) -> MemberWait:
        parts: Any = {"consensus": self, "database": self}
        return MemberWait(topic="networks", members_s=members_s, **parts, **more)


async def test_it_looks_again_as_soon_as_the_rows_change() -> None:
    cluster = Cluster()
    missing: list[list[int] | None] = [[2, 3], [3], None]
    waiting = spawn(cluster.wait().until(lambda: missing[0]), name="waiting")
    async with asyncio.timeout(0.2):  # sooner than it would look by itself
        for _ in range(2):
            await asyncio.sleep(0)
            assert not waiting.done()
            missing.pop(0)
            cluster.applied("networks")
        await waiting
    assert not cluster.subscribers


@pytest.mark.parametrize("missing", [[2, 3], [3]])
async def test_members_that_cannot_be_reached_are_not_waited_for(missing: list[int]) -> None:
    cluster = Cluster()
    wait = cluster.wait(reachable=lambda member_id: member_id == 1)
    with pytest.raises(MemberError, match=rf"^peer node 10\.0\.0\.{missing[0]}:8443 is down$"):
        await wait.until(lambda: missing)
    assert not cluster.subscribers


async def test_one_that_can_be_reached_has_its_time() -> None:
    cluster = Cluster()
    wait = cluster.wait(members_s=0.05, reachable=lambda member_id: member_id != 2)
    async with asyncio.timeout(5):
        with pytest.raises(MemberError, match=r"^peer node 10\.0\.0\.2:8443 is down$"):
            await wait.until(lambda: [2, 3])


async def test_rows_may_settle_after_every_member() -> None:
    cluster = Cluster()
    with pytest.raises(MemberError, match=r"^peer node \? is down$"):
        await cluster.wait(members_s=0.05).until(list)


async def test_the_reason_of_a_failure_goes_through() -> None:
    def failed() -> list[int]:
        raise MemberError("br0 is stuck")

    cluster = Cluster()
    with pytest.raises(MemberError, match=r"^br0 is stuck$"):
        await cluster.wait().until(failed)
    assert not cluster.subscribers
