"""A member that only misses the link to the leader: who stands in for it, and for what."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from gateway_kit import ScratchDatabase, running_member, shared_cluster_pair

from incus_actors.actors.heartbeat import Beat, HeartbeatTable
from incus_actors.errors import MemberError
from incus_actors.gateway.access import CALLER, Caller
from incus_actors.gateway.detour import HEARD_WITHIN_S, Detours
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, sync


def beat(member_id: int, leader: int, applied: int = 7) -> Beat:
    return Beat(member_id, 1, 5, 1, applied, "1", 1, 1, 1, (0.0, 0.0, 0.0), 1, 1, 0, 0, leader=leader)


class Belief:
    """What consensus of member 3 shows."""

    member_id = 3

    def __init__(self, leader: int, linked: set[int], *, halted: str = "", disk_full: bool = False) -> None:
        self.shown = SimpleNamespace(
            member_id=3,
            leader=leader,
            peers=[SimpleNamespace(id=number, link=number in linked) for number in (1, 2, 4)],
            halted=halted,
            disk_full=disk_full,
        )

    def status(self) -> Any:
        return self.shown


def detours(belief: Belief, beats: list[Beat], *, old_s: float = 0.0) -> Detours:
    now_s = [100.0]
    table = HeartbeatTable(monotonic_s=lambda: now_s[0])
    for said in beats:
        table.record(said, own_id=3)
    now_s[0] += old_s
    return Detours(belief, table)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("leader", "linked", "beats", "expected", "why"),
    [
        (0, {2, 4}, [beat(2, 1), beat(4, 1)], 2, "both follow 1, which is out of reach"),
        (0, {2, 4}, [beat(2, 1, 7), beat(4, 1, 9)], 4, "the one that has applied more"),
        (1, {2, 4}, [beat(2, 1)], 2, "we don't know yet that we are cut off"),
        (0, {2}, [beat(4, 1)], 0, "4 is out of reach too"),
        (0, {2, 4}, [beat(2, 0)], 0, "nobody leads"),
        (0, {2, 4}, [beat(2, 4)], 0, "the leader is in reach: an election has just ended"),
        (0, {2, 4}, [beat(2, 2)], 0, "it leads itself"),
        (0, {2, 4}, [beat(2, 3)], 0, "it still believes in us"),
        (1, {1, 2}, [beat(2, 1)], 0, "we follow a leader that is in reach"),
        (3, {2}, [beat(2, 1)], 0, "we lead"),
        (0, {2}, [], 0, "nothing was heard yet"),
    ],
)
def test_who_stands_in(leader: int, linked: set[int], beats: list[Beat], expected: int, why: str) -> None:
    assert detours(Belief(leader, linked), beats).to_leader() == expected, why


def test_nobody_stands_in_for_a_member_that_is_ill_or_by_old_news() -> None:
    assert detours(Belief(0, {2}, halted="its disk"), [beat(2, 1)]).to_leader() == 0
    assert detours(Belief(0, {2}, disk_full=True), [beat(2, 1)]).to_leader() == 0
    assert detours(Belief(0, {2}), [beat(2, 1)], old_s=HEARD_WITHIN_S + 0.1).to_leader() == 0


def test_only_members_out_of_reach_are_gone_around() -> None:
    found = detours(Belief(0, {2, 4}), [beat(2, 1)])
    assert found.around(1) == 2
    assert found.around(4) == 0
    assert found.around(2) == 0
    assert detours(Belief(4, {2, 4}), [beat(2, 4)]).around(1) == 0, "a dead member is nobody's to reach"


# -- with two real gateways -------------------------------------------------------------------------------------------


async def told(request: web.Request) -> web.StreamResponse:
    who = caller(request)
    body = (await request.read()).decode()
    own = gateway(request).consensus.member_id
    return sync({"by": own, "for": who.detoured, "protocol": who.protocol, "forwarded": who.forwarded, "body": body})


ROUTES = [
    RouteSpec("GET", "/1.0/things", told),
    RouteSpec("POST", "/1.0/things", told),
    RouteSpec("GET", "/1.0/softly", told, consistency="fallback"),
    RouteSpec("POST", "/1.0/own", told, own=True),
    RouteSpec("GET", "/internal/things", told, access="member"),
    RouteSpec("GET", "/1.0/instances/{name}", told, forward="instance"),
]


@pytest.fixture
async def pair(tmp_path: Path):
    database = ScratchDatabase()
    shared = shared_cluster_pair(tmp_path / "shared")
    member = {"database": database, "cluster_pair": shared}
    async with (
        running_member(tmp_path / "two", ROUTES, member_id=2, name="node2", **member) as second,
        running_member(tmp_path / "three", ROUTES, member_id=3, name="node3", **member) as third,
    ):
        second.gateway.access.refresh()
        third.gateway.forwarder.detours = detours(Belief(0, {2}), [beat(2, 1)])
        third.consensus.quorum = False
        yield second, third


async def asked(member: Any, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with member.unix_session() as session, session.request(method, path, **more) as response:
        answer = await response.json()
        return response.status, answer["metadata"] or answer["error"]


async def test_what_needs_the_leader_is_answered_by_the_member_that_stands_in(pair: Any) -> None:
    _second, third = pair
    expected = {"by": 2, "for": 3, "protocol": "unix", "forwarded": False}
    assert await asked(third, "GET", "/1.0/things") == (200, {**expected, "body": ""})
    assert await asked(third, "POST", "/1.0/things", data="all of it") == (200, {**expected, "body": "all of it"})
    assert await asked(third, "GET", "/1.0/softly") == (200, {**expected, "body": ""})
    before = third.consensus.barriers
    assert await asked(third, "GET", "/1.0/things?consistency=stale") == (
        200,
        {**expected, "by": 3, "for": 0, "body": ""},
    )
    assert third.consensus.barriers == before


async def test_what_is_about_the_asked_member_itself_is_not(pair: Any) -> None:
    _second, third = pair
    for method, path in (("POST", "/1.0/own"), ("GET", "/internal/things")):
        status, error = await asked(third, method, path)
        assert status == 503, path
        assert "no available leader" in error


async def test_there_is_no_second_hop(pair: Any) -> None:
    second, third = pair
    second.consensus.quorum = False
    second.gateway.forwarder.detours = detours(Belief(0, {4}), [beat(4, 1)])
    status, error = await asked(third, "GET", "/1.0/things")
    assert status == 503
    assert "needs 2 of 3" in error
    stranded: Any = {CALLER: Caller("unix", "root", "@", trusted=True, detoured=3)}
    with pytest.raises(MemberError, match="more than once"):
        await second.gateway.forwarder.detour(stranded, 4)


async def test_an_instance_of_the_leader_is_reached_through_it(pair: Any, tmp_path: Path) -> None:
    second, third = pair
    shared = {"database": second.database, "cluster_pair": second.cluster_pair}
    async with running_member(tmp_path / "one", ROUTES, member_id=1, name="node1", **shared):
        second.database.add_instance("c1", 1)
        second.gateway.access.refresh()
        status, answer = await asked(third, "GET", "/1.0/instances/c1")
        assert status == 200
        assert answer["by"] == 1
        assert answer["for"] == 0
        assert answer["forwarded"]


async def test_events_are_followed_where_all_of_them_come(pair: Any) -> None:
    second, third = pair
    async with third.unix_session() as session, session.ws_connect("/1.0/events?type=lifecycle") as ws:
        second.gateway.events.lifecycle("instance-created", "/1.0/instances/c1")
        message = await ws.receive(timeout=5)
        assert message.type is WSMsgType.TEXT
        assert "instance-created" in message.data


async def test_the_usual_way_is_taken_again_as_soon_as_there_is_a_leader(pair: Any) -> None:
    _second, third = pair
    await asked(third, "GET", "/1.0/things")
    third.consensus.quorum = True
    status, answer = await asked(third, "GET", "/1.0/things")
    assert (status, answer["by"]) == (200, 3)


async def test_no_client_can_say_that_it_is_a_member_that_is_cut_off(pair: Any) -> None:
    _second, third = pair
    third.consensus.quorum = True
    _, answer = await asked(third, "GET", "/1.0/things", headers={"X-Incus-Actors-Detour": "2"})
    assert (answer["by"], answer["for"]) == (3, 0)
