"""What a real Incus 6.0.4 answered to the stock client's requests, asked of a cluster of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from replay import Player, captures_directory, differences, normalised, replay

from incus_actors.lab import debris
from incus_actors.lab.cluster import LabCluster

#: Commands that leave the cluster as it was, or whose objects no other one looks at; in this order.
COMMANDS = [
    "cluster-list-3",
    "cluster-list-json",
    "cluster-show",
    "cluster-show-missing",
    "cluster-info",
    "cluster-get",
    "cluster-add-dup",
    "cluster-edit-bad-roles",
    "cluster-set-bad",
    "cluster-set-badvalue",
    "cluster-group-list",
    "cluster-group-show-missing",
    "cluster-group-delete-default",
    "cluster-remove-missing",
    "cluster-rename",
    "cluster-rename-exists",
    "cluster-rename-back",
    "cluster-role-remove-notset",
    "config-set-badkey",
    "config-set-badval",
    "config-show",
    "config-get",
    "config-get-target",
    "config-show-target",
    "config-trust-list",
    "config-trust-remove-missing",
    "config-trust-list-tokens",
    "sql-global",
    "sql-global-error",
    "sql-global-sync",
    "sql-global-update",
    "sql-global-stdin",
    "sql-local",
    "sql-local-config",
    "sql-global-schema",
    "profile-list",
    "profile-create",
    "profile-show",
    "profile-create-dup",
    "profile-set",
    "profile-get",
    "profile-unset",
    "profile-copy",
    "profile-rename",
    "project-list",
    "project-create",
    "project-show",
    "project-set",
    "project-get",
    "project-info",
    "project-switch-missing",
    "operation-list",
    "operation-show-missing",
    "warning-list",
    "storage-list",
    "network-list",
    "delete-missing",
    "exec-missing",
    "launch-noimage",
    "info-clustered",
    "info-target",
]


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    lab = LabCluster.in_namespaces(3, prefix="acc")
    try:
        lab.form()
        lab.wait_until_healthy()
        yield Player(lab.members[0].directory / "unix.socket")
    finally:
        directory = lab.directory
        lab.destroy()
        if directory is not None:
            debris.remove(directory)


@pytest.mark.parametrize("command", COMMANDS)
def test_replay(command: str, player: Player) -> None:
    directory = captures_directory()
    assert directory is not None
    capture = json.loads((directory / f"{command}.json").read_text())
    assert replay(capture, player) == []


def test_shapes_are_compared_field_by_field() -> None:
    recorded = {"name": "a", "count": 1, "config": {"x": "1"}, "list": [{"k": 1}], "gone": None}
    assert differences(recorded, {"name": "b", "count": 2.0, "config": {"y": "2"}, "list": [], "gone": []}) == []
    assert differences(recorded, {"name": 1, "count": 1, "config": {}, "list": [{"z": 1}], "gone": None}) == [
        ".list[].k: missing",
        ".list[].z: not in Incus",
        ".name: str became int",
    ]
    assert differences({"a": 1}, {"b": 1}) == [".a: missing", ".b: not in Incus"]


def test_values_of_another_machine_do_not_matter() -> None:
    one = "No heartbeat for x (2026-11-21 01:21:57.19 +0000 UTC) 10.67.0.1:8443 481575ba-8574-47b8-9578-006a7d9aa362"
    other = "No heartbeat for x (2027-01-01 00:00:00.5 +0000 UTC) 10.1.2.3:8443 581575ba-8574-47b8-9578-006a7d9aa362"
    assert normalised(one) == normalised(other)
    assert normalised("a") != normalised("b")
