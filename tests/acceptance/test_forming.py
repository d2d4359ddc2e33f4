"""`incus admin init --preseed`, join tokens and the member list, with the stock client."""

from __future__ import annotations

import base64
import json
import re

import pytest

BOOTSTRAP = """\
config:
  core.https_address: {address}:8443
  images.auto_update_interval: 15
storage_pools:
- name: data
  driver: dir
profiles:
- name: default
  devices:
    root:
      path: /
      pool: data
      type: disk
cluster:
  server_name: {name}
  enabled: true
"""
JOIN = """\
cluster:
  enabled: true
  server_address: {address}:8443
  cluster_token: {token}
  member_config:
  - entity: storage-pool
    name: data
    key: source
    value: ""
"""


def token_for(incus, name: str) -> str:
    return incus("cluster", "add", name, "--quiet").strip()


def altered(token: str, **changes: object) -> str:
    facts = json.loads(base64.b64decode(token))
    facts.update(changes)
    return base64.b64encode(json.dumps(facts).encode()).decode()


@pytest.fixture
def seed(servers, incus_on):
    """Three servers, the first of which is bootstrapped by a preseed."""
    lab = servers(3)
    first = lab.members[0]
    incus_on(first)("admin", "init", "--preseed", input=BOOTSTRAP.format(address=first.address, name=first.name))
    return lab


def test_three_members_by_preseed(seed, incus_on) -> None:
    first, *joiners = seed.members
    incus = incus_on(first)
    for member in joiners:
        text = JOIN.format(address=member.address, token=token_for(incus, member.name))
        incus_on(member)("admin", "init", "--preseed", input=text)
    seed.wait_until_healthy()
    for member in seed.members:
        rows = json.loads(incus_on(member)("cluster", "list", "-f", "json"))
        assert sorted(row["server_name"] for row in rows) == ["m1", "m2", "m3"]
        assert all(row["status"] == "Online" and row["message"] == "Fully operational" for row in rows)
        assert sum("database-leader" in row["roles"] for row in rows) == 1
        assert all("database" in row["roles"] for row in rows)
        assert incus_on(member)("config", "get", "images.auto_update_interval").strip() == "15"
        assert "server_clustered: true" in incus_on(member)("info")
        pool = json.loads(incus_on(member)("query", "/1.0/storage-pools/data"))
        assert pool["locations"] == ["m1", "m2", "m3"]
        assert (member.directory / "storage-pools" / "data").is_dir()
    table = incus("cluster", "list")
    for heading in ("NAME", "URL", "ROLES", "ARCHITECTURE", "FAILURE DOMAIN", "DESCRIPTION", "STATUS", "MESSAGE"):
        assert heading in table
    shown = incus("cluster", "show", "m2")
    assert "server_name: m2" in shown
    assert "url: https://10." in shown
    assert incus.fails("cluster", "show", "m9") == "Error: Cluster member not found"


def test_tokens_are_listed_everywhere_and_revoked(cluster, incus_on) -> None:
    one, two, three = (incus_on(m) for m in cluster.members)
    answer = one("cluster", "add", "m7")
    assert answer.startswith("Member m7 join token:\n")
    token = answer.splitlines()[1].strip()
    facts = json.loads(base64.b64decode(token))
    assert list(facts) == ["server_name", "fingerprint", "addresses", "secret", "expires_at"]
    assert re.fullmatch(r"[0-9a-f]{64}", facts["secret"])
    assert sorted(facts["addresses"]) == sorted(m.https_address for m in cluster.members)
    for incus in (one, two, three):
        assert token in incus("cluster", "list-tokens")
    three("cluster", "revoke-token", "m7")
    assert "m7" not in two("cluster", "list-tokens")
    assert two.fails("cluster", "revoke-token", "m7") == ("Error: No cluster join token for member m7 on remote: local")
    assert one.fails("cluster", "add", "m2") == "Error: The cluster already has a member with name: m2"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secret": "00" * 32}, "No matching cluster join operation found"),
        ({"server_name": "other"}, "No matching cluster join operation found"),
        ({"fingerprint": "ab" * 32}, "fingerprint mismatch"),
    ],
)
def test_a_wrong_token_is_refused_and_leaves_nothing(seed, incus_on, change, words) -> None:
    first, joiner, _ = seed.members
    good = token_for(incus_on(first), joiner.name)
    text = JOIN.format(address=joiner.address, token=altered(good, **change))
    assert words in incus_on(joiner).fails("admin", "init", "--preseed", input=text)
    assert "server_clustered: false" in incus_on(joiner)("info")
    assert len(json.loads(incus_on(first)("cluster", "list", "-f", "json"))) == 1
    text = JOIN.format(address=joiner.address, token=good)
    incus_on(joiner)("admin", "init", "--preseed", input=text)
    assert len(json.loads(incus_on(first)("cluster", "list", "-f", "json"))) == 2


def test_a_token_works_once_and_not_after_it_was_revoked(seed, incus_on) -> None:
    first, second, third = seed.members
    incus = incus_on(first)
    revoked = token_for(incus, third.name)
    incus("cluster", "revoke-token", third.name)
    text = JOIN.format(address=third.address, token=revoked)
    assert "No matching cluster join operation found" in incus_on(third).fails("admin", "init", "--preseed", input=text)
    token = token_for(incus, second.name)
    incus_on(second)("admin", "init", "--preseed", input=JOIN.format(address=second.address, token=token))
    used = JOIN.format(address=third.address, token=token)
    assert "No matching cluster join operation found" in incus_on(third).fails("admin", "init", "--preseed", input=used)
    garbled = JOIN.format(address=third.address, token="bm90IGEgdG9rZW4=")
    assert incus_on(third).fails("admin", "init", "--preseed", input=garbled)
    assert len(json.loads(incus("cluster", "list", "-f", "json"))) == 2


def test_an_expired_token_is_refused(seed, incus_on) -> None:
    first, second, _ = seed.members
    incus = incus_on(first)
    incus("config", "set", "cluster.join_token_expiry=1S")
    token = token_for(incus, second.name)
    import time

    time.sleep(1.2)
    text = JOIN.format(address=second.address, token=token)
    words = incus_on(second).fails("admin", "init", "--preseed", input=text)
    assert "expired" in words or "No matching cluster join operation found" in words


def test_bad_preseeds_change_nothing(servers, incus_on) -> None:
    member = servers(1).members[0]
    incus = incus_on(member)
    assert "cannot set 'foo.bar' to '1': unknown key" in incus.fails(
        "admin", "init", "--preseed", input='config:\n  foo.bar: "1"\n'
    )
    assert "ServerName is required when enabling clustering" in incus.fails(
        "admin", "init", "--preseed", input="cluster:\n  enabled: true\n"
    )
    assert "server_clustered: false" in incus("info")
