"""Our commands beside the stock client's, on the same cluster: same output, same errors, same exit code."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

FORMATS = ["table", "compact", "csv", "json", "yaml", "csv,header", "table,noheader", "compact,noheader", "foo"]

LOOKING = [
    *(f"{command} -f {form}" for command in ("cluster list", "cluster group list") for form in FORMATS),
    *(f"config trust list -f {form}" for form in FORMATS),
    *(
        f"{command} -f {form}"
        for command in ("cluster list-tokens", "config trust list-tokens")
        for form in FORMATS[:5]
    ),
    "cluster list -c nsm",
    "cluster list -c n,s",
    "cluster list -c zz",
    "cluster list -c n,,s",
    "cluster list nope:",
    "cluster ls local:",
    "cluster list --foo",
    "cluster list -Z",
    "cluster show m2",
    "cluster show nope",
    "cluster get m1 foo",
    "cluster get m2 user.a",
    "cluster get m2 -p roles",
    "cluster get m2 -p nope",
    "cluster group show default",
    "cluster group show nope",
    "config show",
    "config show --target m2",
    "config show --target nope",
    "config get core.https_address",
    "config get user.nope",
    "config trust list -c ntcfdierp -f csv",
    "config trust list -c cd",
    "config trust show nope",
    "admin waitready -t 3",
]

REFUSED = [
    "cluster set m1 foo",
    "cluster set m1 foo=bar",
    "cluster role add m1 database",
    "cluster role add m1 foo",
    "cluster role remove m1 event-hub",
    "cluster role remove m1 database",
    "cluster group remove m1 nope",
    "cluster group remove m1 default",
    "cluster group add m1 default",
    "cluster group add m1 nope",
    "cluster revoke-token nope",
    "cluster enable x",
    "cluster remove nope",
    "cluster remove nope --yes",
    "cluster rename m1 m2",
    "cluster add m1",
    "cluster update-certificate /nope /nope",
    "config set foo.bar 1",
    "config set foo.bar=1",
    "config set cluster.max_voters 4",
    "config unset foo.x",
    "config show nope",
    "config get nope user.x",
    "config set nope user.x=1",
    "config set nope user.x 1",
    "config trust remove zz",
    "config trust revoke-token nope",
    "config trust add-certificate /nope",
    "config trust add-certificate /dev/null",
    "config trust add-certificate /dev/null --type foo",
]


@pytest.fixture(scope="module", autouse=True)
def content(cluster: list[Any]) -> None:
    """Something to look at, with awkward texts."""
    shell = cluster[0]
    shell("cluster", "set", "m2", "user.a=yes", "user.10=x", "user.9=a: b", "user.lines=l1\nl2\n", "user.html=<&>")
    shell("cluster", "set", "m2", "-p", 'description=a "quoted", one with é')
    shell("cluster", "add", "later", "later2", "later10")
    shell("config", "trust", "add", "alice")
    shell("config", "trust", "add", "bob", "--restricted", "--projects", "default")
    shell("config", "trust", "add-certificate", str(shell.member.directory / "cluster.crt"), "--name", "x9", "--projects", "default")  # fmt: skip


def strip(command: str) -> list[str]:
    return command.split()


@pytest.mark.parametrize("command", LOOKING)
def test_it_looks_the_same(cluster: list[Any], command: str) -> None:
    stock, ours = cluster[0].stock(*strip(command)), cluster[0].run(*strip(command))
    assert (ours.stdout, ours.stderr, ours.returncode) == (stock.stdout, stock.stderr, stock.returncode)


@pytest.mark.parametrize("command", REFUSED)
def test_it_refuses_with_the_same_words(cluster: list[Any], command: str) -> None:
    stock, ours = cluster[0].stock(*strip(command)), cluster[0].run(*strip(command))
    assert stock.returncode == ours.returncode == 1
    assert (ours.stdout, ours.stderr) == (stock.stdout, stock.stderr)


def test_times_are_local(cluster: list[Any]) -> None:
    stock = cluster[0].stock("config", "trust", "list", TZ="Asia/Kolkata")
    assert "IST" in stock.stdout
    assert cluster[0].run("config", "trust", "list", TZ="Asia/Kolkata").stdout == stock.stdout


def test_info_has_the_same_fields(cluster: list[Any]) -> None:
    def keys(text: str) -> list[str]:
        return ["- a number" if line.strip().startswith("- ") else line.split(":")[0] for line in text.splitlines()]

    assert keys(cluster[0]("cluster", "info", "m2")) == keys(cluster[0].stock("cluster", "info", "m2").stdout)


def test_changes_say_the_same_and_do_it(cluster: list[Any]) -> None:
    """Each change by us, seen by the stock client, and back."""
    shell = cluster[0]
    said = [
        shell("cluster", "group", "create", "g1", "--description", "one"),
        shell("cluster", "group", "add", "m3", "g1"),
        shell("cluster", "group", "rename", "g1", "g2"),
        shell("cluster", "role", "add", "m3", "event-hub"),
        shell("cluster", "set", "m3", "scheduler.instance=manual"),
        shell("cluster", "rename", "m3", "m3b"),
    ]
    shown = shell.stock("cluster", "show", "m3b").stdout
    assert "- event-hub" in shown
    assert "- g2" in shown
    assert "scheduler.instance: manual" in shown
    said += [
        shell("cluster", "rename", "m3b", "m3"),
        shell("cluster", "unset", "m3", "scheduler.instance"),
        shell("cluster", "role", "remove", "m3", "event-hub"),
        shell("cluster", "group", "assign", "m3", "default"),
        shell("cluster", "group", "delete", "g2"),
    ]
    assert "".join(said) == (
        "Cluster group g1 created\nCluster member m3 added to group g1\nCluster group g1 renamed to g2\n"
        "Member m3 renamed to m3b\nMember m3b renamed to m3\n"
        "Cluster member m3 added to cluster groups default\nCluster group g2 deleted\n"
    )


def test_edit_takes_yaml_and_ignores_what_cannot_be_written(cluster: list[Any]) -> None:
    shell = cluster[0]
    shown = shell("cluster", "show", "m3").replace('description: ""', "description: edited")
    shell("cluster", "edit", "m3", text=shown)
    assert shell("cluster", "get", "m3", "-p", "description") == "edited\n"
    shell("cluster", "set", "m3", "-p", "description=")
    broken = shell.run("cluster", "edit", "m3", text="roles: [a")
    assert broken.returncode == 1
    assert broken.stderr.startswith("Error: yaml: line 1: ")


def test_server_keys(cluster: list[Any]) -> None:
    shell = cluster[0]
    shell("config", "set", "user.one", "1")
    shell("config", "set", "user.two=2", "user.three=a=b")
    shell("config", "set", "core.debug_address=127.0.0.1:7777", "--target", "m2")
    assert shell.stock("config", "get", "user.three").stdout == "a=b\n"
    assert shell("config", "get", "core.debug_address", "--target", "m2") == "127.0.0.1:7777\n"
    assert shell("config", "get", "core.debug_address") == "\n"
    shell("config", "unset", "core.debug_address", "--target", "m2")
    shell("config", "edit", text=shell("config", "show").replace('user.one: "1"', "user.one: 7"))
    assert shell("config", "get", "user.one") == "7\n"
    for key in ("one", "two", "three"):
        shell("config", "unset", f"user.{key}")
    assert "user." not in shell("config", "show")


def test_many_tokens_at_once_are_json_and_all_or_none(cluster: list[Any]) -> None:
    """WANTS 41."""
    shell = cluster[0]
    made = json.loads(shell("cluster", "add", "n1", "n2", "n3"))
    assert [row["name"] for row in made] == ["n1", "n2", "n3"]
    listed = json.loads(shell.stock("cluster", "list-tokens", "-f", "json").stdout)
    assert {token["secret"] for token in listed if token["server_name"].startswith("n")}.__len__() == 3
    refused = shell.run("cluster", "add", "n4", "m1", "n5")
    assert refused.returncode == 1
    assert refused.stderr == "Error: m1: The cluster already has a member with name: m1\n"
    assert "n4" not in shell("cluster", "list-tokens", "-c", "n")
    assert shell("cluster", "revoke-token", "n1") == "Cluster join token for local:n1 deleted\n"
    assert shell.stock("cluster", "revoke-token", "n2").returncode == 0
    assert shell("-h")
    quiet = shell("cluster", "add", "n3", "-q")
    assert quiet.count("\n") == 1
    shell("cluster", "revoke-token", "n3")


def test_remove_by_force_asks_as_the_stock_client_does(cluster: list[Any]) -> None:
    stock = cluster[0].stock("cluster", "remove", "nope", "--force", text="no\n")
    ours = cluster[0].run("cluster", "remove", "nope", "--force", text="no\n")
    assert (ours.stdout, ours.stderr, ours.returncode) == (stock.stdout, stock.stderr, stock.returncode)
    assert (
        cluster[0]
        .run("cluster", "remove", "nope", "--force", text="maybe\nyes\n")
        .stderr.endswith("Error: Cluster member not found\n")
    )


def test_a_remote_is_reached_by_https_and_its_certificate_is_pinned(
    cluster: list[Any], configuration: Path, tmp_path: Path
) -> None:
    shell = cluster[0]
    token = shell("config", "trust", "add", "laptop", "-q").strip()
    added = shell.stock("remote", "add", "far", token)
    assert added.returncode == 0, added.stderr
    assert shell("cluster", "list", "far:") == shell("cluster", "list")
    pinned = configuration / "servercerts" / "far.crt"
    genuine = pinned.read_text()
    pinned.write_text((shell.member.directory / "server.crt").read_text())
    refused = shell.run("cluster", "list", "far:")
    pinned.write_text(genuine)
    assert refused.returncode == 1
    assert "does not show the certificate that is trusted" in refused.stderr
    shell.stock("remote", "remove", "far")


def test_without_a_daemon_it_says_so(cluster: list[Any], tmp_path: Path) -> None:
    shell = cluster[0]
    for command in (["cluster", "list"], ["admin", "waitready", "-t", "1"]):
        stock = shell.stock(*command, INCUS_DIR=str(tmp_path))
        ours = shell.run(*command, INCUS_DIR=str(tmp_path))
        assert (ours.stderr, ours.returncode) == (stock.stderr, stock.returncode)


def test_it_is_quick(cluster: list[Any]) -> None:
    """Most of it is Python's start; the best of five tells about us, not about the machine's load."""
    times = []
    for _ in range(5):
        begin = time.monotonic()
        cluster[0]("cluster", "list")
        times.append(time.monotonic() - begin)
    assert min(times) < 0.5
