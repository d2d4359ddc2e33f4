"""The server object tells what is true here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from service_kit import running_services

from incus_actors.model.api_extensions import API_EXTENSIONS
from incus_actors.model.resources import PoolsPost
from incus_actors.services import server_info

CAPTURES = Path(__file__).parents[3] / "shared" / "contract" / "captures"


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


async def test_facts_of_this_machine(kit):
    server = kit.services.server.server(user="root", method="unix")
    environment = server.environment
    assert environment.kernel_version == os.uname().release
    assert environment.server_pid == os.getpid()
    assert environment.architectures[0] == os.uname().machine
    assert (environment.driver, environment.driver_version) == ("lxc", "5.0.2")
    assert environment.lxc_features == {"cgroup2": "true"}
    assert environment.certificate.startswith("-----BEGIN CERTIFICATE-----")
    assert (environment.server_clustered, environment.server_name, environment.storage) == (False, "host", "")
    await kit.services.storage.create(PoolsPost(name="p", driver="dir"))
    assert kit.services.server.server(user="root", method="unix").environment.storage == "dir"


async def test_a_stranger_sees_no_environment_and_no_config(kit):
    await kit.services.config.patch({"user.secret": "x"})
    shown = msgspec.json.decode(msgspec.json.encode(kit.services.server.untrusted()))
    assert "environment" not in shown
    assert (shown["config"], shown["auth"]) == ({}, "untrusted")


@pytest.mark.may_skip
@pytest.mark.skipif(not CAPTURES.exists(), reason="the contract is not on this machine")
async def test_fields_are_those_of_a_real_server_in_the_same_order(kit):
    capture = json.loads((CAPTURES / "info-clustered.json").read_text())
    text = json.dumps(capture)
    shown = msgspec.json.decode(msgspec.json.encode(kit.services.server.server(user="root", method="unix")))
    for field in [*shown, *shown["environment"]]:
        assert f'"{field}"' in text, field
    real = _find(capture, "environment")
    assert list(shown["environment"]) == list(real)


def _find(value, key):
    if isinstance(value, dict):
        if isinstance(value.get(key), dict):
            return value[key]
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        found = _find(item, key)
        if found:
            return found
    return None


@pytest.mark.may_skip
@pytest.mark.skipif(not CAPTURES.exists(), reason="the contract is not on this machine")
def test_every_extension_is_one_that_incus_has():
    known = set(json.loads((CAPTURES / "_api-extensions-6.0.4.json").read_text()))
    assert set(API_EXTENSIONS) <= known
    assert len(set(API_EXTENSIONS)) == len(API_EXTENSIONS)


async def test_addresses(kit, monkeypatch):
    monkeypatch.setattr(server_info.interfaces, "global_addresses", lambda: ["192.0.2.2", "2001:db8::2"])
    for configured, shown in (
        ("", []),
        ("127.0.0.1", ["127.0.0.1:8443"]),
        (":9000", ["192.0.2.2:9000", "[2001:db8::2]:9000"]),
        ("0.0.0.0", ["192.0.2.2:8443"]),
    ):
        await kit.services.config.patch({"core.https_address": configured})
        assert kit.services.server.addresses() == shown


async def test_a_new_certificate_is_noticed(kit, tmp_path):
    from incus_actors.security import certificates

    before = kit.services.server.certificate()
    assert kit.services.server.certificate() is before
    certificates.write_pair(tmp_path, "server", *certificates.make_certificate("other"))
    os.utime(tmp_path / "server.crt", ns=(1, 1))
    assert kit.services.server.certificate().fingerprint != before.fingerprint


async def test_resources_are_read_once_for_a_while(kit):
    first = await kit.services.server.resources()
    assert first["cpu"]["total"] == os.cpu_count()
    assert await kit.services.server.resources() is first
