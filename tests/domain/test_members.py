"""What a member is shown as, and which changes are refused, by tables."""

from __future__ import annotations

import pytest

from incus_actors.domain import members as rules
from incus_actors.domain.members import MemberState, Sighting
from incus_actors.errors import ApiError
from incus_actors.model.cluster import ClusterMemberPut


@pytest.mark.parametrize(
    ("own_id", "assigned", "roles", "shown"),
    [
        (1, (), {1: "voter"}, (["database-leader", "database"], True)),
        (2, (), {1: "voter", 2: "standby"}, (["database-standby"], True)),
        (2, (), {1: "voter", 2: "voter"}, (["database"], True)),
        (2, ("event-hub",), {1: "voter", 2: "voter"}, (["event-hub", "database"], True)),
        (3, (), {1: "voter", 3: "spare"}, ([], False)),
        (4, ("ovn-chassis",), {1: "voter"}, (["ovn-chassis"], False)),
    ],
)
def test_roles(own_id, assigned, roles, shown):
    assert rules.shown_roles(own_id, assigned, roles, leader=1) == shown


SEEN_NS = 1_795_224_117_198_958_978


@pytest.mark.parametrize(
    ("state", "age_s", "newest", "shown"),
    [
        (MemberState.CREATED, 1.0, (1, 1), ("Online", "Fully operational")),
        (MemberState.CREATED, 20.0, (1, 1), ("Online", "Fully operational")),
        (
            MemberState.CREATED,
            20.371673507,
            (1, 1),
            ("Offline", "No heartbeat for 20.371673507s (2026-11-21 01:21:57.198958978 +0000 UTC)"),
        ),
        (MemberState.EVACUATED, 99.0, (1, 1), ("Evacuated", "Unavailable due to maintenance")),
        (MemberState.CREATED, 1.0, (2, 1), ("Blocked", "Needs updating to newer version")),
        (MemberState.CREATED, 1.0, (1, 2), ("Blocked", "Needs updating to newer version")),
    ],
)
def test_status(state, age_s, newest, shown):
    assert rules.shown_status((1, 1), state, Sighting(age_s, SEEN_NS), 20, newest) == shown


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (999, "999ns"),
        (1_500, "1.5µs"),
        (350_000_000, "350ms"),
        (1_000_000_000, "1s"),
        (20_371_673_507, "20.371673507s"),
        (65_000_000_000, "1m5s"),
        (7_200_500_000_000, "2h0m0.5s"),
    ],
)
def test_go_duration(nanoseconds, text):
    assert rules.go_duration(nanoseconds) == text


def test_times():
    assert rules.rfc3339(SEEN_NS) == "2026-11-21T01:21:57.198958978Z"
    assert rules.parse_rfc3339_ns(rules.rfc3339(SEEN_NS)) == SEEN_NS
    assert rules.rfc3339(SEEN_NS - 198_958_978) == "2026-11-21T01:21:57Z"
    assert rules.go_time(SEEN_NS - 958_978) == "2026-11-21 01:21:57.198 +0000 UTC"


@pytest.mark.parametrize(
    ("text", "seconds"), [("3H", 10800), ("1d 12H", 129600), ("90S", 90), ("5M", 300), ("1w", 604800), ("", None)]
)
def test_expiry(text, seconds):
    assert rules.expiry_seconds(text) == seconds


@pytest.mark.parametrize("text", ["3", "H", "3X", "3H;"])
def test_bad_expiry(text):
    with pytest.raises(ApiError):
        rules.expiry_seconds(text)


def put(**changes):
    fields = {"roles": ["database"], "groups": ["default"], "config": {}}
    return ClusterMemberPut(**{**fields, **changes})


@pytest.mark.parametrize(
    ("change", "voter", "status", "text"),
    [
        ({"roles": []}, True, 400, 'The "database" role cannot be dropped at this time'),
        ({"roles": None}, True, 400, 'The "database" role cannot be dropped at this time'),
        ({}, False, 400, 'The "database" role cannot be added at this time'),
        ({"roles": ["database", "foo"]}, True, 500, 'Update roles: Invalid cluster role "foo"'),
        ({"groups": []}, True, 400, "Cluster members need to belong to at least one group"),
        ({"config": {"foo.bar": "1"}}, True, 500, 'Invalid cluster configuration key "foo.bar"'),
        (
            {"config": {"scheduler.instance": "x"}},
            True,
            500,
            'Invalid cluster configuration key "scheduler.instance" value',
        ),
    ],
)
def test_refused_changes(change, voter, status, text):
    with pytest.raises(ApiError) as caught:
        rules.check_member_put(put(**change), stores_as_voter=voter, groups={"default"})
    assert (caught.value.status, str(caught.value)) == (status, text)


def test_allowed_changes():
    groups = {"default", "g1"}
    rules.check_member_put(put(groups=["default", "g1"]), stores_as_voter=True, groups=groups)
    rules.check_member_put(put(roles=["database-leader", "database", "event-hub"]), stores_as_voter=True, groups=groups)
    rules.check_member_put(put(roles=["database-standby"]), stores_as_voter=False, groups=groups)
    rules.check_member_put(put(config={"user.x": "1", "scheduler.instance": ""}), stores_as_voter=True, groups=groups)
    assert rules.assigned_roles(["database", "ovn-chassis", "event-hub", "database-leader"]) == [1, 2]


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a_b", "a'b", 'a"b', "*"])
def test_bad_group_names(name):
    with pytest.raises(ApiError):
        rules.check_group_name(name)
