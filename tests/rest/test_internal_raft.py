"""What the lanes refuse is told by /internal/raft, `incus-actors raft status` and the metrics, over real sockets."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from gateway_kit import running_member
from lane_kit import HOST, Ear, Peer, Stranger, envelope, until
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from incus_actors.cli.inspect import _print_lanes
from incus_actors.consensus.api import ConsensusStatus, PeerStatus
from incus_actors.consensus.types import Configuration, Member, RaftRole
from incus_actors.services.consensus_metrics import consensus_families
from incus_actors.services.metrics import exposition
from incus_actors.transport.codec import encode
from incus_actors.transport.keys import generate_curve_keys
from incus_actors.transport.lanes import Lanes

HEADER = b"\x01\x01"


def status() -> ConsensusStatus:
    members = Configuration((Member(1, "a"), Member(2, "b")))
    return ConsensusStatus(1, "cluster", 1, RaftRole.LEADER, 3, 1, 9, 9, 9, 9, 1, members)


def scraped(lanes: Lanes) -> dict[tuple[str, str], float]:
    """The counters of the lanes as Prometheus reads them."""
    text = exposition(list(consensus_families(status(), lanes.counters()))).decode()
    families = {family.name: family.samples for family in text_string_to_metric_families(text)}
    return {(s.labels["lane"], s.labels["event"]): s.value for s in families["incus_actors_transport_events"]}


def test_the_metrics_name_the_sqlite_of_each_member() -> None:
    peers = (
        PeerStatus(2, 9, "replicate", 3, 0.5, True, sqlite_version="3.46.0"),
        PeerStatus(3, 0, "probe", 3, 0.5, False),
    )
    families = consensus_families(replace(status(), sqlite_version="3.40.1", peers=peers), {})
    samples = [s for f in families if f.name == "incus_actors_raft_sqlite_info" for s in f.samples]
    assert [(s.labels["member"], s.labels["version"], s.value) for s in samples] == [
        ("1", "3.40.1", 1),
        ("2", "3.46.0", 1),
    ]


async def refusals(lanes: Lanes) -> None:
    """A stranger knocks, a member talks nonsense, a member is removed and goes on talking."""
    control, bulk = lanes.lane_factory(), lanes.bulk_lane()
    peer = Peer(2)
    await control.start(Ear())
    await bulk.start(SimpleNamespace(on_actor_frame=None, on_link_up=int, on_link_down=lambda *_: None))
    door = cast(Any, SimpleNamespace(keys=lanes.keys, lane=control))
    knocking: list[Stranger] = []
    try:
        await lanes.open(HOST)
        await peer.lane.start(peer.ear)
        members = [Member(1, lanes.address), peer.member()]
        control.set_peers(members, 1)
        peer.lane.set_peers(members, 2)
        await until(lambda: control.links() == {2} and peer.lane.links() == {1})
        knocking += [Stranger(door, generate_curve_keys()), Stranger(door, peer.keys)]
        knocking[0].send(HEADER + encode(envelope(2, 1)))
        knocking[1].send(HEADER + b"garbage")
        counters = lambda: lanes.counters()["control"]  # noqa: E731
        await until(lambda: counters().get("zap_refused") and counters().get("malformed"))
        known = counters()["zap_refused"]
        control.set_peers(members[:1], 1)
        await until(lambda: counters().get("cut_off") and counters()["zap_refused"] > known)
    finally:
        for stranger in knocking:
            stranger.close()
        await peer.lane.close()
        await control.close()
        await bulk.close()


async def test_a_stranger_nonsense_and_a_removed_member_are_counted_where_an_operator_looks(tmp_path: Path) -> None:
    lanes = Lanes(tmp_path)
    await refusals(lanes)
    async with running_member(tmp_path / "member", []) as member:
        member.gateway.lane_counters = lanes.counters
        peers = (PeerStatus(2, 7, "replicate", 3, 0.5, True), PeerStatus(3, 0, "unknown", -1, 0.0, False))
        member.consensus.status = lambda: replace(status(), peers=peers)  # type: ignore[method-assign]
        async with member.unix_session() as session, session.get("/internal/raft") as answer:
            metadata = (await answer.json())["metadata"]
        member.gateway.phase = "starting"  # nobody has a name yet, and what can be told is told
        async with member.unix_session() as session, session.get("/internal/raft") as answer:
            assert (await answer.json())["metadata"]["names"] == {}
    assert metadata["names"] == {"1": "node1", "2": ""}
    assert [peer["lag"] for peer in metadata["status"]["peers"]] == [2, -1]
    told = metadata["transport"]
    assert told == lanes.counters()
    assert told["control"]["zap_refused"] >= 2  # the stranger, and the removed member when it dialled again
    assert told["control"]["malformed"] == 1
    assert told["control"]["cut_off"] == 1
    numbers = scraped(lanes)
    for event in ("zap_refused", "malformed", "cut_off"):
        assert numbers["control", event] == told["control"][event]
    out = io.StringIO()
    _print_lanes(Console(file=out, highlight=False), told)
    assert "control lane:" in out.getvalue()
    assert f"zap_refused {told['control']['zap_refused']}" in out.getvalue()
