"""The trust password: off by default, kept as a hash, shown as "true", slow and logged when it is wrong."""

from __future__ import annotations

import asyncio
import base64
import logging

import pytest
from service_kit import running_services

from incus_actors.errors import BadRequestError, ClientError, ForbiddenError
from incus_actors.model.resources import CertificatesPost
from incus_actors.security import certificates
from incus_actors.services.trust_password import KEY, TrustPassword
from incus_actors.state.queries import config as queries


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        found.slept = []

        async def sleep(seconds):
            found.slept.append(seconds)

        found.trust = found.services.trust
        found.now = [0.0]
        found.trust.password = TrustPassword(found.services.config._database, sleep=sleep, clock_s=lambda: found.now[0])
        yield found


def stored(kit) -> str:
    return queries.global_config(kit.services.config._database).get(KEY, "")


def post(**fields):
    pem = certificates.make_certificate("stranger")[0]
    der = base64.b64encode(certificates.pem_to_der(pem)).decode()
    return CertificatesPost(**{"type": "client", "certificate": der, **fields})


async def test_without_one_nobody_comes_in(kit):
    assert not kit.trust.password.is_set()
    assert kit.services.server.untrusted().auth_methods == ("tls",)
    with pytest.raises(ForbiddenError, match=r"^not authorized$"):
        await kit.trust.admit(post(), None, "anything", "10.0.0.9:5")


async def test_it_is_stored_as_a_hash_and_shown_as_true(kit):
    await kit.services.config.patch({KEY: "sekret"})
    first = stored(kit)
    assert first.startswith("scrypt$")
    assert kit.services.config.effective()[KEY] == "true"
    assert kit.services.server.untrusted().auth_methods == ("tls", "password")
    assert not await kit.services.config.replace(kit.services.config.effective()), "read and written back: no change"
    assert not await kit.services.config.patch({KEY: "sekret"}), "the same again is no change"
    assert stored(kit) == first
    assert await kit.services.config.patch({KEY: "other"}) == {KEY}
    assert stored(kit) != first
    await kit.services.config.patch({KEY: ""})
    assert not kit.trust.password.is_set()


async def test_an_endless_one_is_refused(kit):
    with pytest.raises(BadRequestError, match=f"cannot set '{KEY}'"):
        await kit.services.config.patch({KEY: "x" * 2000})


async def test_who_knows_it_is_trusted(kit, caplog):
    caplog.set_level(logging.INFO)
    await kit.services.config.patch({KEY: "sekret"})
    fingerprint = await kit.trust.admit(post(name="laptop"), None, "sekret", "10.0.0.9:5")
    assert kit.trust.get(fingerprint).name == "laptop"
    assert not kit.slept
    assert "sekret" not in caplog.text


async def test_wrong_ones_are_slower_each_time_and_logged(kit, caplog):
    await kit.services.config.patch({KEY: "sekret"})
    for _ in range(7):
        with pytest.raises(ForbiddenError):
            await kit.trust.admit(post(), None, "wrong", "10.0.0.9:5")
    with pytest.raises(ForbiddenError):
        await kit.trust.admit(post(), None, "wrong", "10.0.0.8:5")
    assert kit.slept == [1, 2, 4, 8, 16, 30, 30, 1]
    assert "wrong trust password from 10.0.0.9:5 (attempt 7)" in caplog.text
    kit.now[0] = 10_000.0
    with pytest.raises(ForbiddenError):
        await kit.trust.admit(post(), None, "wrong", "10.0.0.9:5")
    assert kit.slept[-1] == 1, "forgotten after a while"
    assert not kit.trust.list()


async def test_attempts_wait_for_each_other_and_only_a_few_may(kit):
    await kit.services.config.patch({KEY: "sekret"})
    tries = [kit.trust.admit(post(), None, "wrong", f"10.0.0.{n}:5") for n in range(8)]
    found = await asyncio.gather(*tries, return_exceptions=True)
    refused = [error for error in found if isinstance(error, ClientError) and error.status == 429]
    assert len(refused) == 4
    assert len(kit.slept) == 4


async def test_a_server_needs_a_cluster_and_a_sane_type(kit):
    await kit.services.config.patch({KEY: "sekret"})
    with pytest.raises(BadRequestError, match="This server is not clustered"):
        await kit.trust.admit(post(type="server", name="m2"), None, "sekret", "10.0.0.9:5")
    with pytest.raises(BadRequestError, match="Invalid certificate type"):
        await kit.trust.admit(post(type="metrics"), None, "sekret", "10.0.0.9:5")
    with pytest.raises(BadRequestError, match="No client certificate provided"):
        await kit.trust.admit(CertificatesPost(type="client"), None, "sekret", "10.0.0.9:5")
