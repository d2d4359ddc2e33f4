"""Names and values of what Prometheus reads about consensus."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from incus_actors.consensus.api import ConsensusStatus, PeerStatus
from incus_actors.consensus.types import Configuration, Member, RaftRole
from incus_actors.services.consensus_metrics import consensus_families
from incus_actors.services.metrics import exposition

MEMBERS = Configuration((Member(1, "a"), Member(2, "b"), Member(3, "c")))


def scraped(status: ConsensusStatus) -> dict[str, dict[tuple[str, ...], float]]:
    """What a scrape reads: by family, and the values of its labels in the order of their names."""
    text = exposition(list(consensus_families(status, {}))).decode()
    return {
        family.name.removeprefix("incus_actors_raft_"): {
            tuple(value for _, value in sorted(s.labels.items())): s.value for s in family.samples
        }
        for family in text_string_to_metric_families(text)
    }


def leader() -> ConsensusStatus:
    return ConsensusStatus(
        member_id=1,
        cluster_id="c",
        epoch=2,
        role=RaftRole.LEADER,
        term=7,
        leader=1,
        commit=100,
        applied=99,
        last=101,
        durable=101,
        first=40,
        configuration=MEMBERS,
        peers=(
            PeerStatus(2, 100, "replicate", 12, 0.8, True, in_flight=3, free_kib=2048),
            PeerStatus(3, 60, "excluded", 400, 0.0, False),
        ),
        counters={"stall_ms_forgiven": 70, "prevotes_won,why=heir": 1},
        queue_depths={"witness": 5},
        latency_ms={"heartbeat_late": {"p99": 4.0}},
        free_kib=1024,
        fast_path_spent=1,
        fast_path_budget=4,
    )


def test_a_leader_tells_about_itself_and_everyone() -> None:
    found = scraped(leader())
    for name, value in (
        ("epoch", 2), ("last_index", 101), ("first_index", 40), ("free_disk_bytes", 1 << 20), ("fast_path_spent", 1),
        ("fast_path_budget", 4),
    ):  # fmt: skip
        assert found[name] == {(): value}, name
    assert found["role"] == {("follower",): 0, ("pre-candidate",): 0, ("candidate",): 0, ("leader",): 1}
    assert found["lag_entries"] == {("2",): 0, ("3",): 40}
    assert found["peer_link"] == {("2",): 1, ("3",): 0}
    assert {key for key, value in found["peer_state"].items() if value} == {("2", "replicate"), ("3", "excluded")}
    assert found["peer_round_trip_milliseconds"] == {("2",): 0.8, ("3",): 0}
    assert found["peer_contact_milliseconds"] == {("2",): 12, ("3",): 400}
    assert found["peer_in_flight"] == {("2",): 3, ("3",): 0}
    assert found["peer_free_disk_bytes"] == {("2",): 2 << 20}  # the other one has not told
    assert found["events"] == {("heir", "prevotes_won"): 1, ("", "stall_ms_forgiven"): 70}
    assert found["queue_depth"] == {("witness",): 5}
    assert found["latency_milliseconds"] == {("p99", "heartbeat_late"): 4}


def test_a_follower_tells_of_its_links_only() -> None:
    peers = (PeerStatus(1, 0, "unknown", -1, 0.0, True), PeerStatus(3, 0, "unknown", -1, 0.0, False))
    found = scraped(ConsensusStatus(2, "c", 1, RaftRole.FOLLOWER, 7, 1, 9, 9, 9, 9, 1, MEMBERS, peers))
    assert found["peer_link"] == {("1",): 1, ("3",): 0}
    assert found["lag_entries"] == found["peer_state"] == found["peer_in_flight"] == {}
    assert "free_disk_bytes" not in found
