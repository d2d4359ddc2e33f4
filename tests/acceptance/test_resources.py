"""Images, profiles, server configuration and raw queries, with the stock client."""

from __future__ import annotations

import io
import json
import tarfile

import pytest


@pytest.fixture
def incus(cluster, incus_on):
    """The stock client at the second member: never the first, which bootstrapped."""
    return incus_on(cluster.members[1])


def test_images_unified_and_split_from_any_member(cluster, incus_on, unified, split) -> None:
    one, two, three = (incus_on(m) for m in cluster.members)
    said = two("image", "import", *map(str, split), "--alias", "two-files", "os=tiny")
    fingerprint = said.split("fingerprint:")[1].strip()
    assert fingerprint in three("image", "info", "two-files")
    rows = json.loads(three("image", "list", "-f", "json"))
    mine = next(r for r in rows if r["fingerprint"] == fingerprint)
    assert mine["properties"]["os"] == "tiny"
    assert [a["name"] for a in mine["aliases"]] == ["two-files"]
    three("launch", "two-files", "s1", "--target", "m3")
    assert one("exec", "s1", "--", "hostname").strip() == "s1"
    one("delete", "-f", "s1")
    assert "Image with same fingerprint already exists" in one.fails("image", "import", *map(str, split))
    one("image", "alias", "create", "second-name", fingerprint)
    two("image", "alias", "rename", "second-name", "third-name")
    assert "third-name" in three("image", "alias", "list")
    two("image", "alias", "delete", "third-name")
    assert "third-name" not in three("image", "alias", "list")
    three("image", "delete", "two-files")
    assert one.fails("image", "info", "two-files") == 'Error: Image "two-files" not found'


def bad_tarball(kind: str, good: bytes) -> bytes:
    if kind == "junk":
        return b"this is no image" * 1000
    if kind == "truncated":
        return good[: len(good) // 2]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        metadata = b"architecture: x86_64\ncreation_date: 1700000000\n"
        entry = tarfile.TarInfo("metadata.yaml")
        entry.size = len(metadata)
        archive.addfile(entry, io.BytesIO(metadata))
        bad = tarfile.TarInfo(
            {"dotdot": "rootfs/../../evil", "absolute": "/etc/evil", "device": "rootfs/dev/sda"}[kind]
        )
        if kind == "device":
            bad.type, bad.devmajor, bad.devminor = tarfile.BLKTYPE, 8, 0
        archive.addfile(bad)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["junk", "truncated", "dotdot", "absolute", "device"])
def test_bad_images_are_refused_and_leave_nothing(incus, cluster, unified, tmp_path, kind) -> None:
    before = [sorted(p.name for p in (m.directory / "images").iterdir()) for m in cluster.members]
    listed = incus("image", "list", "-f", "csv")
    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(bad_tarball(kind, unified.read_bytes()))
    assert incus.fails("image", "import", str(bad)).startswith("Error: ")
    assert incus("image", "list", "-f", "csv") == listed
    assert [sorted(p.name for p in (m.directory / "images").iterdir()) for m in cluster.members] == before


def test_profiles(incus, cluster, incus_on, image) -> None:
    other = incus_on(cluster.members[2])
    incus("profile", "create", "web", "--description", "web servers")
    other("profile", "set", "web", "user.kind=web")
    assert incus("profile", "get", "web", "user.kind").strip() == "web"
    incus("profile", "device", "add", "web", "none1", "none")
    incus("launch", image, "p1", "-p", "default", "-p", "web")
    assert "user.kind: web" in other("config", "show", "p1", "--expanded")
    assert json.loads(other("query", "/1.0/profiles/web"))["used_by"] == ["/1.0/instances/p1"]
    assert incus.fails("profile", "delete", "web") == "Error: Profile is currently in use"
    other("profile", "remove", "p1", "web")
    incus("profile", "rename", "web", "web2")
    incus("profile", "copy", "web2", "web3")
    assert "web servers" in other("profile", "show", "web3")
    incus("profile", "delete", "web2")
    incus("profile", "delete", "web3")
    incus("delete", "-f", "p1")
    assert "already exists" in incus.fails("profile", "create", "default")
    assert "foo.bar" in incus.fails("profile", "set", "default", "foo.bar=1")


def test_server_configuration(incus, cluster, incus_on) -> None:
    other = incus_on(cluster.members[2])
    incus("config", "set", "user.a=1", "cluster.offline_threshold=25")
    assert other("config", "get", "cluster.offline_threshold").strip() == "25"
    assert other("config", "get", "user.a").strip() == "1"
    other("config", "unset", "user.a")
    assert "user.a" not in incus("config", "show")
    incus("config", "unset", "cluster.offline_threshold")
    assert incus.fails("config", "set", "foo.bar=1") == "Error: cannot set 'foo.bar' to '1': unknown key"
    assert "Value must be an odd number equal to or higher than 3" in incus.fails(
        "config", "set", "cluster.max_voters=4"
    )
    assert "core.https_address" in other("config", "show")
    assert incus("config", "get", "core.https_address", "--target", "m3").strip() == cluster.members[2].https_address


def test_query_and_bad_requests(incus) -> None:
    assert json.loads(incus("query", "/1.0"))["environment"]["server_name"] == "m2"
    assert "not found" in incus.fails("query", "/1.0/nonsense")
    assert "not implemented" in incus.fails("query", "-X", "DELETE", "/1.0")
    assert incus.fails("query", "-X", "POST", "-d", "{broken", "/1.0/profiles").startswith("Error: ")
    assert incus.fails("query", "-X", "POST", "-d", '{"name": 5}', "/1.0/profiles").startswith("Error: ")
    huge = json.dumps({"name": "huge", "description": "x" * (2 << 20)})
    assert incus.run("query", "-X", "POST", "-d", "@-", "/1.0/profiles", input=huge).returncode != 0
    assert "default" in incus("profile", "list")
