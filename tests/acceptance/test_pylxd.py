"""pylxd, the Python client of LXD, forms a cluster of ours and works with it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from incus_actors.lab.cluster import LabCluster
from incus_actors.lab.processes import LabMember

pylxd = pytest.importorskip("pylxd", reason="the check environment of tox has it")


def client_of(member: LabMember) -> Any:
    return pylxd.Client(endpoint=f"http+unix://{str(member.directory / 'unix.socket').replace('/', '%2F')}")


def finished(client: Any, response: Any) -> Any:
    """Wait for the operation of an answer."""
    client.operations.wait_for_operation(response.json()["operation"])
    return response.json()["metadata"]


def form(lab: LabCluster) -> list[Any]:
    clients = [client_of(member) for member in lab.members]
    first = clients[0]
    first.api.patch(json={"config": {"core.https_address": lab.members[0].https_address}})
    first.storage_pools.create({"name": "default", "driver": "dir", "config": {}})
    profile = first.profiles.get("default")
    profile.devices["root"] = {"type": "disk", "path": "/", "pool": "default"}
    profile.save()
    enabled = {"server_name": lab.members[0].name, "enabled": True}
    finished(first, first.api.cluster.put(json=enabled))
    for member, client in zip(lab.members[1:], clients[1:], strict=True):
        facts = first.api.cluster.members.post(json={"server_name": member.name}).json()["metadata"]["metadata"]
        token = {
            "server_name": facts["serverName"],
            "fingerprint": facts["fingerprint"],
            "addresses": facts["addresses"],
            "secret": facts["secret"],
            "expires_at": facts["expiresAt"],
        }
        join = {
            "server_name": member.name,
            "enabled": True,
            "server_address": member.https_address,
            "cluster_address": facts["addresses"][0],
            "cluster_certificate": client_of(lab.members[0]).host_info["environment"]["certificate"],
            "cluster_token": base64.b64encode(json.dumps(token).encode()).decode(),
            "member_config": [],
        }
        finished(client, client.api.cluster.put(json=join))
    return [client_of(member) for member in lab.members]


def test_pylxd_forms_and_uses_a_cluster(servers) -> None:
    lab = servers(3)
    one, two, three = form(lab)
    lab.wait_until_healthy()
    assert one.trusted
    assert one.host_info["environment"]["server_clustered"]
    for client in (one, two, three):
        members = client.cluster.members.all()
        assert sorted(member.server_name for member in members) == ["m1", "m2", "m3"]
        assert all(member.status == "Online" for member in members)
    assert two.cluster.members.get("m3").url == f"https://{lab.members[2].https_address}"
    two.profiles.create("small", {"limits.memory": "64MiB"}, {})
    assert three.profiles.exists("small")
    small = three.profiles.get("small")
    small.description = "from member three"
    small.save()
    assert one.profiles.get("small").description == "from member three"
    small.delete()
    assert not one.profiles.exists("small")
    project = one.projects.create("web", description="pages", config={"features.images": "false"})
    assert {p.name for p in two.projects.all()} == {"default", "web"}
    project.description = "more pages"
    project.save()
    assert three.projects.get("web").description == "more pages"
    project.delete()
    assert [pool.name for pool in three.storage_pools.all()] == ["default"]
    certificates = two.certificates.all()
    assert len(certificates) == 3
    with pytest.raises(pylxd.exceptions.NotFound):
        one.profiles.get("nothing")
    assert one.instances.all() == []
