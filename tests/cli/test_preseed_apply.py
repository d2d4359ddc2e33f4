"""Preseeds against real daemons: bootstrap and every way of joining, twice, failing, and undone."""

from __future__ import annotations

import json
from typing import Any

BOOTSTRAP = """
config:
  core.https_address: {address}
  images.auto_update_interval: 15
storage_pools:
- name: default
  driver: dir
- name: my-pool
  driver: dir
  description: mine
projects:
- name: prj
  config:
    features.images: "true"
profiles:
- name: default
  devices:
    root:
      path: /
      pool: my-pool
      type: disk
- name: extra
  config:
    limits.cpu: 1
cluster:
  server_name: server1
  enabled: true
"""


def state(shell: Any) -> list[Any]:
    """Everything that a preseed can change, with ETags' worth of detail."""
    paths = ["", "/storage-pools", "/projects", "/profiles", "/networks", "/cluster", "/certificates"]
    found = []
    for path in paths:
        got = shell.member.client.get(f"/1.0{path}?recursion=1")
        found.append(got["config"] if not path else got)
    return found


def applied_index(shell: Any) -> int:
    return int(shell.member.client.get("/internal/raft")["status"]["commit"])


def preseed(shell: Any, text: str) -> Any:
    return shell.run("admin", "init", "--preseed", text=text)


def test_bootstrap_and_again_and_the_ways_of_joining(fresh: Any) -> None:
    first, second, third = fresh(3)
    text = BOOTSTRAP.format(address=first.member.https_address)
    done = preseed(first, text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert first("cluster", "list", "-c", "n", "-f", "csv") == "server1\n"
    assert first("config", "get", "cluster.https_address").strip() == first.member.https_address
    before, index = state(first), applied_index(first)
    again = preseed(first, text)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert state(first) == before
    assert applied_index(first) <= index + 1, "the second run wrote something"

    token = json.loads(first("cluster", "add", "server2", "--json"))[0]["token"]
    join = (
        f"cluster:\n  enabled: true\n  server_address: {second.member.address}\n  cluster_token: {token}\n"
        '  member_config:\n  - entity: storage-pool\n    name: my-pool\n    key: source\n    value: ""\n'
    )
    assert preseed(second, join).returncode == 0
    again = preseed(second, join)
    assert (again.returncode, again.stderr) == (0, ""), "a server that is that member already has nothing to do"
    assert first("cluster", "list", "-c", "n", "-f", "csv") == "server1\nserver2\n"

    wrong = preseed(third, join.replace("enabled: true", "enabled: true\n  server_name: other"))
    assert wrong.stderr == 'Error: line 3: the join token is for "server2", not for "other"\n'
    used = preseed(third, join.replace(second.member.address, third.member.address))
    assert used.returncode == 1
    assert "Failed to join cluster: " in used.stderr
    assert "No matching cluster join operation found" in used.stderr
    assert third.run("cluster", "list").stderr == "Error: Server isn't part of a cluster\n"
    token = json.loads(first("cluster", "add", "server3", "--json"))[0]["token"]
    certificate = "".join(f"    {line}\n" for line in _certificate(first).splitlines())
    explicit = (
        f"config: {{}}\ncluster:\n  server_name: server3\n  enabled: true\n  server_address: {third.member.address}\n"
        f"  cluster_address: {second.member.address}\n  cluster_token: {token}\n  cluster_certificate: |\n{certificate}"
    )
    assert preseed(third, explicit).stderr == ""
    assert first("cluster", "list", "-c", "n", "-f", "csv") == "server1\nserver2\nserver3\n"


def _certificate(shell: Any) -> str:
    return str(shell.member.client.get("/1.0")["environment"]["certificate"])


def test_a_failing_preseed_undoes_all_and_tells_every_reason(fresh: Any) -> None:
    """WANTS 22: non-zero, each failing key with its line, nothing left."""
    (shell,) = fresh(1)
    assert preseed(shell, "config: {user.keep: 1}\nprojects: [{name: old, description: before}]").returncode == 0
    before = state(shell)
    text = """config:
  user.new: 1
  foo.bar: 2
  cluster.max_voters: 4
storage_pools:
- name: good
  driver: dir
- name: bad
  driver: nope
projects:
- name: old
  description: after
- name: wrong
  config:
    foo: 1
profiles:
- name: fine
  devices:
    root: {type: disk, path: /, pool: good}
- name: on-bad
  devices:
    root: {type: disk, path: /, pool: bad}
- name: broken
  config:
    nonsense: 1
"""
    done = preseed(shell, text)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Error: line 3: Failed to update server configuration: cannot set 'foo.bar' to '2': unknown key"
    assert lines[1].startswith(
        "line 4: Failed to update server configuration: cannot set 'cluster.max_voters' to '4': "
    )
    assert lines[2].startswith('line 8: Failed to create storage pool "bad": ')
    assert lines[3].startswith('line 13: Failed to create local member project "wrong": ')
    assert lines[4].startswith('line 23: Failed to create profile "broken" in project "default": ')
    assert lines[5:] == ["Everything was put back as it was"]
    assert state(shell) == before


def test_a_failing_bootstrap_undoes_what_came_before(fresh: Any) -> None:
    (shell,) = fresh(1)
    before = state(shell)
    done = preseed(
        shell,
        f"config: {{core.https_address: '{shell.member.https_address}'}}\nstorage_pools: [{{name: p, driver: dir}}]\n"
        "cluster: {server_name: none, enabled: true}\n",
    )
    assert done.returncode == 1
    assert "line 3: Failed to configure cluster: " in done.stderr
    assert state(shell) == before


CANNOT_JOIN = [
    ("enabled: true\n  cluster_token: AAAA", ["Error: Invalid cluster join token: "]),
    (
        "enabled: true\n  server_address: 10.0.0.1\n  cluster_address: 10.0.0.2:99999",
        [
            "Error: line 2: ServerName is required when enabling clustering",
            "line 4: Invalid address: 10.0.0.2:99999",
            'line 4: without a token a "cluster_certificate" or "cluster_certificate_path" is needed',
        ],
    ),
    (
        "server_name: x\n  enabled: true\n  server_address: 10.0.0.1\n  cluster_address: 10.0.0.2\n  cluster_certificate_path: /nope",
        ["Error: Path /nope doesn't exist"],
    ),
    (
        "server_name: x\n  enabled: true\n  server_address: 10.0.0.1\n  cluster_address: 10.0.0.2\n  cluster_certificate: nonsense",
        ["Error: the cluster certificate is no PEM certificate"],
    ),
]


def test_joins_that_cannot_be_are_refused_before_anything_is_tried(fresh: Any) -> None:
    (shell,) = fresh(1)
    before = state(shell)
    for cluster, reasons in CANNOT_JOIN:
        done = preseed(shell, f"cluster:\n  {cluster}\n")
        assert done.returncode == 1
        for line, reason in zip(done.stderr.splitlines(), reasons, strict=True):
            assert line.startswith(reason)
    assert state(shell) == before


def test_dump_can_be_applied_and_changes_nothing(fresh: Any) -> None:
    (shell,) = fresh(1)
    assert preseed(shell, BOOTSTRAP.format(address=shell.member.https_address)).returncode == 0
    dumped = shell("admin", "init", "--dump")
    stock = shell.stock("admin", "init", "--dump")
    assert dumped == stock.stdout
    before, index = state(shell), applied_index(shell)
    assert preseed(shell, dumped).returncode == 0
    assert state(shell) == before
    assert applied_index(shell) <= index + 1


def test_sections_that_a_join_ignores_are_named(fresh: Any) -> None:
    first, second = fresh(2)
    assert preseed(first, BOOTSTRAP.format(address=first.member.https_address)).returncode == 0
    token = json.loads(first("cluster", "add", "two", "--json"))[0]["token"]
    done = preseed(
        second,
        f"config: {{user.x: 1}}\ncluster:\n  enabled: true\n  server_address: {second.member.address}\n"
        f"  cluster_token: {token}\n",
    )
    assert done.returncode == 0
    assert done.stderr == 'Warning: line 1: "config" is ignored: a joining server gets it from the cluster\n'
