"""Reading preseed files: every documented shape, every mistake with its line."""

from __future__ import annotations

import pytest

from incus_actors.cli.preseed import PreseedError, as_yaml, entry, parse

MISTAKES = [
    ("configg: {}\nfoo: 1\n", "line 1: field configg not found in type api.InitPreseed"),
    ("config:\n  a: 1\n  a: 2\n", 'line 3: key "a" already set in map'),
    ("storage_pools:\n- name: x\n  drive: dir\n", "line 3: field drive not found in type api.StoragePoolsPost"),
    ("cluster:\n  foo: 1\n", "line 2: field foo not found in type api.InitClusterPreseed"),
    ("networks:\n- foo: 1\n", "line 2: field foo not found in type api.InitNetworksProjectPost"),
    ("profiles:\n- foo: 1\n", "line 2: field foo not found in type api.InitProfileProjectPost"),
    ("projects:\n- foo: 1\n", "line 2: field foo not found in type api.ProjectsPost"),
    ("storage_volumes:\n- foo: 1\n", "line 2: field foo not found in type api.InitStorageVolumesProjectPost"),
    ("cluster:\n  member_config:\n  - foo: 1\n", "line 3: field foo not found in type api.ClusterMemberConfigKey"),
    ("config: foo\n", "line 1: cannot unmarshal !!str `foo` into map[string]string"),
    ("config: abcdefghijklmno\n", "line 1: cannot unmarshal !!str `abcdefg...` into map[string]string"),
    ("config: [a]\n", "line 1: cannot unmarshal !!seq into map[string]string"),
    ("networks: {}\n", "line 1: cannot unmarshal !!map into []api.InitNetworksProjectPost"),
    ("- a\n", "line 1: cannot unmarshal !!seq into api.InitPreseed"),
    ("config:\n  user.x: [1]\n", "line 2: cannot unmarshal !!seq into string"),
    ("cluster:\n  enabled: foo\n", "line 2: cannot unmarshal !!str `foo` into bool"),
    ("cluster:\n  enabled: 1\n", "line 2: cannot unmarshal !!int `1` into bool"),
    ("profiles:\n- devices:\n    a: b\n", "line 3: cannot unmarshal !!str `b` into map[string]string"),
]


@pytest.mark.parametrize(("text", "reason"), MISTAKES)
def test_mistakes_are_told_as_incus_does_with_their_line(text: str, reason: str) -> None:
    """All of these are words of a real 6.0.4."""
    with pytest.raises(PreseedError) as caught:
        parse(text)
    assert caught.value.reasons[0] == "yaml: unmarshal errors:"
    assert f"  {reason}" in caught.value.reasons


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(PreseedError) as caught:
        parse("foo: 1\nconfig:\n  user.a: [1]\ncluster:\n  enabled: maybe\n  bar: 2\n")
    assert [reason.split(":")[0] for reason in caught.value.reasons[1:]] == [
        "  line 1",
        "  line 3",
        "  line 5",
        "  line 6",
    ]


@pytest.mark.parametrize("text", ["foo: [", "a: b: c", "config:\n\tx: 1", "&a [*a", "\x00"])
def test_what_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(PreseedError, match=r"^yaml: "):
        parse(text)


def test_a_bomb_of_aliases_is_only_as_large_as_it_looks() -> None:
    text = "a: &a {x: 1}\nb: &b [*a, *a, *a]\nnetworks: [*b, *b]\n"
    with pytest.raises(PreseedError):
        parse(text)


def test_an_enormous_file_is_refused() -> None:
    with pytest.raises(PreseedError, match="larger than"):
        parse("#" * (5 << 20))


def test_values_become_texts() -> None:
    config = parse("config: {a: true, b: 1.50, c: 0x10, d: null, e: 010, f: yes, g: 2020-01-01}").config
    assert config == {"a": "true", "b": "1.50", "c": "0x10", "d": "", "e": "010", "f": "yes", "g": "2020-01-01"}


def test_nothing_is_fine() -> None:
    assert not parse("").sections()
    assert not parse("config: {}\nnetworks:\nstorage_pools: []\ncluster: null\n").sections()


def test_lines_are_kept_for_later_failures() -> None:
    found = parse("config:\n  user.a: 1\nstorage_pools:\n- name: a\n  driver: dir\n- driver: dir\n  name: b\n")
    assert found.config_lines == {"user.a": 2}
    assert [(pool["name"], pool.line, pool.at("name")) for pool in found.storage_pools] == [("a", 4, 4), ("b", 6, 7)]
    assert found.sections() == {"config": 2, "storage_pools": 4}


def test_anchors_and_merges_work() -> None:
    text = "projects:\n- &p {name: a, description: d}\n- <<: *p\n  name: b\n"
    assert [(p["name"], p["description"]) for p in parse(text).projects] == [("a", "d"), ("b", "d")]


@pytest.mark.parametrize(
    ("text", "joins"),
    [
        ("cluster: {server_name: a, enabled: true}", False),
        ("cluster: {server_name: a, enabled: true, server_address: 10.0.0.1}", False),
        ("cluster: {enabled: true, server_address: 10.0.0.1, cluster_token: x}", True),
        ("cluster: {enabled: true, server_address: 10.0.0.1, cluster_address: 10.0.0.2, cluster_password: p}", True),
        ("config: {}", False),
    ],
)
def test_what_joins(text: str, joins: bool) -> None:
    assert parse(text).joins is joins


def test_printed_preseeds_are_the_stock_clients_and_read_back() -> None:
    """The text of captures/admin-init-interactive-bootstrap.transcript.txt."""
    preseed = parse("")
    preseed.config = {"core.https_address": "10.67.0.1:8443", "core.trust_password": "never shown"}
    preseed.storage_pools = [entry("storage_pools", name="local", driver="dir")]
    root = {"type": "disk", "path": "/", "pool": "local"}
    preseed.profiles = [entry("profiles", name="default", project="default", devices={"root": root})]
    preseed.cluster = entry("cluster", server_name="node1", enabled=True)
    text = as_yaml(preseed)
    assert text == (
        "config:\n  core.https_address: 10.67.0.1:8443\nnetworks: []\nstorage_pools:\n- config: {}\n"
        '  description: ""\n  name: local\n  driver: dir\nstorage_volumes: []\nprofiles:\n- config: {}\n'
        '  description: ""\n  devices:\n    root:\n      path: /\n      pool: local\n      type: disk\n'
        "  name: default\n  project: default\nprojects: []\ncluster:\n  server_name: node1\n  enabled: true\n"
        '  member_config: []\n  cluster_address: ""\n  cluster_certificate: ""\n  server_address: ""\n'
        '  cluster_token: ""\n  cluster_certificate_path: ""\n'
    )
    assert as_yaml(parse(text)) == text
