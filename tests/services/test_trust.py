"""The trust store and its doors: texts of a real Incus 6.0.4, and tokens that work once."""

from __future__ import annotations

import asyncio
import base64

import pytest
from service_kit import NOW_NS, Seen, running_services

from incus_actors.errors import (
    BadRequestError,
    ClientError,
    ConflictError,
    ForbiddenError,
    MemberError,
    NotFoundError,
    PreconditionFailedError,
)
from incus_actors.model.resources import CertificatePut, CertificatesPost
from incus_actors.security import certificates, tokens


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


def pem_of(name: str) -> str:
    return certificates.make_certificate(name)[0]


def b64(pem: str) -> str:
    return base64.b64encode(certificates.pem_to_der(pem)).decode()


async def listening(kit):
    await kit.services.config.patch({"core.https_address": "127.0.0.1:8443"})


def printed(operation) -> str:
    """What the client makes of the token operation."""
    metadata = operation["metadata"]
    return tokens.TrustToken(
        metadata["request"]["name"], metadata["fingerprint"], tuple(metadata["addresses"]), metadata["secret"]
    ).encode()


async def test_add_show_change_remove(kit):
    trust = kit.services.trust
    pem = pem_of("alice")
    fingerprint = await trust.add(
        CertificatesPost(
            name="a", type="client", certificate=b64(pem), restricted=True, projects=["default"], description="d"
        )
    )
    shown = trust.get(fingerprint[:6])
    assert (shown.name, shown.type, shown.restricted, shown.projects, shown.description) == (
        "a",
        "client",
        True,
        ["default"],
        "d",
    )
    assert shown.fingerprint == fingerprint == certificates.fingerprint_pem(shown.certificate)
    await trust.update(fingerprint, CertificatePut(description="q"), patch=True)
    assert trust.get(fingerprint).restricted
    await trust.update(fingerprint, CertificatePut(name="n", type="client"))
    shown = trust.get(fingerprint)
    assert (shown.name, shown.restricted, shown.projects, shown.description) == ("n", False, [], "")
    assert await trust.remove(fingerprint[:12]) == fingerprint
    assert trust.list() == []


async def test_a_certificate_without_name_gets_its_own(kit):
    await kit.services.trust.add(CertificatesPost(type="client", certificate=b64(pem_of("bob"))))
    assert kit.services.trust.list()[0].name == "root@bob"


async def test_what_cannot_be_added(kit):
    trust = kit.services.trust
    known = b64(pem_of("a"))
    await trust.add(CertificatesPost(name="a", type="client", certificate=known))
    for post, error, text in (
        (CertificatesPost(), BadRequestError, "Client is already trusted"),
        (CertificatesPost(type="client", certificate="zzz"), BadRequestError, "illegal base64 data at input byte 0"),
        (
            CertificatesPost(type="client", certificate="YWJj"),
            BadRequestError,
            "Invalid certificate material: x509: malformed certificate",
        ),
        (CertificatesPost(type="nope", certificate=known), BadRequestError, "Invalid certificate type"),
        (CertificatesPost(type="client", certificate=known), ConflictError, "Certificate already in trust store"),
        (
            CertificatesPost(type="client", certificate=b64(pem_of("b")), restricted=True, projects=["nope"]),
            NotFoundError,
            "Project not found",
        ),
    ):
        with pytest.raises(error) as caught:
            await trust.add(post)
        assert str(caught.value) == text
    assert len(trust.list()) == 1


async def test_what_cannot_be_changed(kit):
    trust = kit.services.trust
    fingerprint = await trust.add(CertificatesPost(name="a", type="client", certificate=b64(pem_of("a"))))
    for put, error, text in (
        (CertificatePut(), BadRequestError, "The certificate type cannot be changed"),
        (CertificatePut(type="metrics"), BadRequestError, "The certificate type cannot be changed"),
        (CertificatePut(type="client", projects=["nope"]), NotFoundError, "Project not found"),
        (CertificatePut(type="client", certificate="junk"), BadRequestError, "Invalid PEM encoded certificate"),
    ):
        with pytest.raises(error) as caught:
            await trust.update(fingerprint, put)
        assert str(caught.value) == text
    with pytest.raises(NotFoundError, match=r"^Certificate not found$"):
        await trust.update("abc", CertificatePut())
    with pytest.raises(PreconditionFailedError):
        await trust.update(fingerprint, CertificatePut(name="x"), patch=True, expect=Seen(None))
    other = pem_of("b")
    await trust.add(CertificatesPost(name="b", type="client", certificate=b64(other)))
    with pytest.raises(MemberError, match=r"^Update \"certificates\" entry failed: UNIQUE constraint failed: cert"):
        await trust.update(fingerprint, CertificatePut(certificate=other), patch=True)


async def test_a_token_lets_one_client_in_as_it_says(kit):
    await listening(kit)
    trust = kit.services.trust
    operation = await trust.issue_token(
        CertificatesPost(name="alice", type="client", restricted=True, projects=["default"], token=True)
    )
    assert operation["class"] == "token"
    assert operation["metadata"]["addresses"] == ["127.0.0.1:8443"]
    assert operation["metadata"]["request"]["projects"] == ["default"]
    assert [listed["id"] for listed in kit.token_operations.list_tokens()] == [operation["id"]]
    assert kit.token_operations.get_token(operation["id"]) == operation
    pem = pem_of("alice")
    post = CertificatesPost(type="server", name="evil", trust_token=printed(operation))
    fingerprint = await trust.redeem(post, pem)
    shown = trust.get(fingerprint)
    assert (shown.name, shown.type, shown.restricted, shown.projects) == ("alice", "client", True, ["default"])
    assert kit.token_operations.list_tokens() == []
    with pytest.raises(ForbiddenError, match=r"^No matching certificate add operation found$"):
        await trust.redeem(post, pem_of("mallory"))


async def test_two_clients_with_one_token_at_once(kit):
    await listening(kit)
    trust = kit.services.trust
    text = printed(await trust.issue_token(CertificatesPost(name="x", type="client", token=True)))
    posts = [trust.redeem(CertificatesPost(trust_token=text), pem_of(f"c{n}")) for n in range(3)]
    results = await asyncio.gather(*posts, return_exceptions=True)
    assert [type(result) for result in results if not isinstance(result, str)] == [ForbiddenError] * 2
    assert len(trust.list()) == 1


async def test_revoked_expired_and_garbled_tokens(kit):
    await listening(kit)
    trust = kit.services.trust
    revoked = await trust.issue_token(CertificatesPost(name="r", type="client", token=True))
    assert await kit.token_operations.revoke_token(revoked["id"])
    with pytest.raises(ForbiddenError, match="No matching"):
        await trust.redeem(CertificatesPost(trust_token=printed(revoked)), pem_of("c"))
    await kit.services.config.patch({"core.remote_token_expiry": "1H"})
    expiring = await trust.issue_token(CertificatesPost(name="e", type="client", token=True))
    assert expiring["metadata"]["expiresAt"] == "2026-09-21T15:13:20Z"
    kit.clock_ns[0] = NOW_NS + 3601 * 1_000_000_000
    with pytest.raises(ForbiddenError, match=r"^Token has expired$"):
        await trust.redeem(CertificatesPost(trust_token=printed(expiring)), pem_of("c"))
    for garbled in ("", "abc", "e30=", "x" * 100_000):
        with pytest.raises(ForbiddenError, match=r"^not authorized$"):
            await trust.redeem(CertificatesPost(trust_token=garbled), pem_of("c"))
    assert trust.list() == []


async def test_a_stranger_must_show_a_certificate(kit):
    await listening(kit)
    text = printed(await kit.services.trust.issue_token(CertificatesPost(name="x", type="client", token=True)))
    with pytest.raises(BadRequestError, match=r"^No client certificate provided$"):
        await kit.services.trust.redeem(CertificatesPost(trust_token=text), None)


async def test_a_join_token_goes_to_the_cluster_service(kit):
    pem = pem_of("node2")
    text = tokens.JoinToken("node2", "f" * 64, ("127.0.0.1:8443",), "s" * 64, tokens.NEVER).encode()
    await kit.services.trust.redeem(CertificatesPost(trust_token=text, certificate=b64(pem)), None)
    assert kit.join_tokens.asked == [certificates.fingerprint_pem(pem)]


async def test_tokens_need_a_listener_and_are_for_clients(kit):
    trust = kit.services.trust
    with pytest.raises(BadRequestError, match=r"^Can't issue token when server isn't listening on network$"):
        await trust.issue_token(CertificatesPost(name="t", type="client", token=True))
    with pytest.raises(BadRequestError, match=r"^Tokens can only be issued for client certificates$"):
        await trust.issue_token(CertificatesPost(name="t", type="metrics", token=True))
    await listening(kit)
    with pytest.raises(NotFoundError, match=r"^Project not found$"):
        await trust.issue_token(CertificatesPost(name="t", type="client", token=True, projects=["nope"]))


async def test_a_members_certificate_stays(kit):
    trust = kit.services.trust
    fingerprint = await trust.add(CertificatesPost(name="node1", type="server", certificate=b64(pem_of("n"))))
    await kit.become_clustered()
    with pytest.raises(ClientError, match="cannot be removed"):
        await trust.remove(fingerprint)
