"""How long a request waits for a leader, and when it stops hoping for one."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from incus_actors.consensus.types import Configuration, Member, Role
from incus_actors.errors import UnavailableError
from incus_actors.rest import middleware
from incus_actors.rest.middleware import Freshness, out_of_reach

THREE = Configuration(tuple(Member(number, f"10.0.0.{number}:1:2:{'ab' * 32}", Role.VOTER) for number in (1, 2, 3)))


class Leaderless:
    """Answers no read before `leads_after`; reaches `linked` of the others."""

    def __init__(self, linked: list[int], leads_after: float = 100.0) -> None:
        self.linked = linked
        self.leads_at = time.monotonic() + leads_after
        self.asked = 0
        self.disk_full = False

    def status(self) -> SimpleNamespace:
        peers = [SimpleNamespace(id=number, link=number in self.linked) for number in (2, 3)]
        return SimpleNamespace(member_id=1, peers=peers, configuration=THREE, disk_full=self.disk_full, halted="")

    async def read_barrier(self, *, timeout_s: float) -> int:
        self.asked += 1
        left = self.leads_at - time.monotonic()
        if left > timeout_s:
            await asyncio.sleep(timeout_s)
            raise UnavailableError("no leader")
        await asyncio.sleep(max(0.0, left))
        return 1


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "HOPELESS_S", 0.05)
    monkeypatch.setattr(middleware, "LOOK_AGAIN_S", 0.02)


async def test_a_write_waits_for_a_leader_that_can_still_be_elected() -> None:
    consensus = Leaderless([2], leads_after=0.15)
    await Freshness(consensus)._confirm(5.0)  # type: ignore[arg-type]
    assert consensus.asked > 2


async def test_a_write_does_not_wait_where_no_quorum_is_in_reach() -> None:
    consensus = Leaderless([], leads_after=0.15)
    with pytest.raises(UnavailableError):
        await Freshness(consensus)._confirm(5.0)  # type: ignore[arg-type]
    assert consensus.asked == 1


async def test_a_full_disk_is_no_reason_to_wait_for_a_leader() -> None:
    consensus = Leaderless([2, 3], leads_after=0.15)
    consensus.disk_full = True
    with pytest.raises(UnavailableError):
        await Freshness(consensus)._confirm(5.0)  # type: ignore[arg-type]
    assert consensus.asked == 1


async def test_a_refusal_is_an_answer_and_not_asked_again() -> None:
    class Stopping(Leaderless):
        async def read_barrier(self, *, timeout_s: float) -> int:
            self.asked += 1
            raise UnavailableError("Shutting down")

    consensus = Stopping([2, 3])
    with pytest.raises(UnavailableError, match="Shutting down"):
        await Freshness(consensus)._confirm(5.0)  # type: ignore[arg-type]
    assert consensus.asked == 1


def test_out_of_reach() -> None:
    assert out_of_reach(Leaderless([3]).status()) == []  # type: ignore[arg-type]
    assert out_of_reach(Leaderless([]).status()) == [frozenset({1, 2, 3})]  # type: ignore[arg-type]
