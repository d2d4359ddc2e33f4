"""The trust store over REST: what an administrator, a stranger with a token and a limited client may do."""

from __future__ import annotations

import base64

import pytest
from gateway_kit import client_pair
from plain_rest_kit import running_rest

from incus_actors.security import certificates, tokens

PATH = "/1.0/certificates"


@pytest.fixture
async def rest(tmp_path):
    async with running_rest(tmp_path) as found:
        yield found


def b64(pair) -> str:
    return base64.b64encode(certificates.pem_to_der(pair.certificate_pem)).decode()


async def token_for(rest, **wanted) -> str:
    await rest.ask("PATCH", "/1.0", {"config": {"core.https_address": "127.0.0.1:8443"}})
    body = {"name": "alice", "type": "client", "token": True, "projects": None, **wanted}
    answer = await rest.ask("POST", PATH, body)
    assert (answer.status, answer.body["type"]) == (202, "async")
    assert answer.headers["Location"] == f"/1.0/operations/{answer.metadata['id']}"
    data = answer.metadata["metadata"]
    return tokens.TrustToken("alice", data["fingerprint"], tuple(data["addresses"]), data["secret"]).encode()


async def test_trust_add_certificate_and_remove(rest, tmp_path):
    pair = client_pair(tmp_path / "c", "alice")
    made = await rest.ask("POST", PATH, {"name": "alice", "type": "client", "certificate": b64(pair)})
    assert (made.status, made.metadata) == (201, None)
    assert made.headers["Location"] == f"{PATH}/{pair.fingerprint}"
    assert rest.lifecycle[-1]["action"] == "certificate-created"
    again = await rest.ask("POST", PATH, {"name": "alice", "type": "client", "certificate": b64(pair)})
    assert (again.status, again.error) == (409, "Certificate already in trust store")
    async with rest.tls(pair) as session:
        assert (await rest.ask("GET", "/1.0", session=session)).metadata["auth_user_name"] == pair.fingerprint
    assert (await rest.ask("GET", PATH)).metadata == [f"{PATH}/{pair.fingerprint}"]
    one = await rest.ask("GET", f"{PATH}/{pair.fingerprint[:8]}")
    assert one.metadata["certificate"] == pair.certificate_pem
    gone = await rest.ask("DELETE", f"{PATH}/{pair.fingerprint}")
    assert (gone.status, gone.metadata) == (200, {})
    async with rest.tls(pair) as session:
        assert (await rest.ask("GET", "/1.0", session=session)).metadata["auth"] == "untrusted"


async def test_remote_add_with_a_token_takes_the_certificate_of_the_connection(rest, tmp_path):
    text = await token_for(rest)
    pair = client_pair(tmp_path / "c", "alice")
    body = {"name": "", "type": "client", "certificate": "", "trust_token": text, "token": False, "projects": None}
    async with rest.tls(pair) as session:
        made = await rest.ask("POST", PATH, body, session=session)
        assert (made.status, made.headers["Location"]) == (201, f"{PATH}/{pair.fingerprint}")
    async with rest.tls(pair) as session:
        assert (await rest.ask("GET", "/1.0", session=session)).metadata["auth"] == "trusted"
    async with rest.tls(client_pair(tmp_path / "m", "mallory")) as session:
        again = await rest.ask("POST", PATH, body, session=session)
        assert (again.status, again.error) == (403, "No matching certificate add operation found")
    assert len((await rest.ask("GET", PATH)).metadata) == 1


async def test_strangers_without_a_good_token_get_nothing(rest, tmp_path):
    pair = client_pair(tmp_path / "c", "mallory")
    async with rest.tls(pair) as session:
        for body in (
            {"type": "client", "certificate": b64(pair)},
            {"type": "client", "trust_token": "garbled"},
            {"type": "client", "token": True, "name": "x"},
            {},
        ):
            answer = await rest.ask("POST", PATH, body, session=session)
            assert (answer.status, answer.error) == (403, "not authorized")
        for method, path in (("GET", PATH), ("DELETE", f"{PATH}/abc"), ("PUT", f"{PATH}/abc")):
            assert (await rest.ask(method, path, {}, session=session)).status == 403
    assert (await rest.ask("GET", PATH)).metadata == []


async def test_a_limited_client_sees_only_itself_and_trusts_nobody(rest, tmp_path):
    limited, other = client_pair(tmp_path / "l", "limited"), client_pair(tmp_path / "o", "other")
    for pair, extra in ((limited, {"restricted": True, "projects": ["default"]}), (other, {})):
        await rest.ask("POST", PATH, {"name": "n", "type": "client", "certificate": b64(pair), **extra})
    async with rest.tls(limited) as session:
        assert (await rest.ask("GET", PATH, session=session)).metadata == [f"{PATH}/{limited.fingerprint}"]
        assert (await rest.ask("GET", f"{PATH}/{other.fingerprint}", session=session)).status == 403
        body = {"name": "x", "type": "client", "certificate": b64(client_pair(tmp_path / "x", "x"))}
        assert (await rest.ask("POST", PATH, body, session=session)).status == 403
        for token in (True, False):
            text = {"name": "x", "type": "client", "token": token}
            assert (await rest.ask("POST", PATH, text, session=session)).status == 403
        assert (await rest.ask("DELETE", f"{PATH}/{other.fingerprint}", session=session)).status == 403
        assert (await rest.ask("GET", "/1.0", session=session)).metadata["config"] == {}


async def test_edit_with_if_match(rest, tmp_path):
    pair = client_pair(tmp_path / "c", "alice")
    await rest.ask("POST", PATH, {"name": "a", "type": "client", "certificate": b64(pair)})
    one = await rest.ask("GET", f"{PATH}/{pair.fingerprint}")
    etag = {"If-Match": one.headers["Etag"]}
    body = {**one.metadata, "name": "b"}
    assert (await rest.ask("PUT", f"{PATH}/{pair.fingerprint}", body, headers=etag)).status == 200
    assert (await rest.ask("PUT", f"{PATH}/{pair.fingerprint}", body, headers=etag)).status == 412
    assert (await rest.ask("GET", f"{PATH}/{pair.fingerprint}")).metadata["name"] == "b"
