"""/1.0 as the stock client uses it."""

from __future__ import annotations

import pytest
from gateway_kit import client_pair
from plain_rest_kit import running_rest


@pytest.fixture
async def rest(tmp_path):
    async with running_rest(tmp_path) as found:
        yield found


async def test_config_set_is_get_and_put_of_everything_with_if_match(rest):
    got = await rest.ask("GET", "/1.0")
    config = {**got.metadata["config"], "user.a": "1"}
    put = await rest.ask("PUT", "/1.0", {"config": config}, headers={"If-Match": got.headers["Etag"]})
    assert (put.status, put.metadata) == (200, {})
    assert rest.lifecycle[-1]["action"] == "config-updated"
    stale = await rest.ask("PUT", "/1.0", {"config": {}}, headers={"If-Match": got.headers["Etag"]})
    assert stale.status == 412
    assert stale.error.startswith("ETag doesn't match: ")
    assert (await rest.ask("GET", "/1.0")).metadata["config"] == {"user.a": "1"}


async def test_a_change_of_nothing_is_no_event(rest):
    assert (await rest.ask("PATCH", "/1.0", {"config": {}})).status == 200
    assert rest.lifecycle == []


async def test_null_in_config_means_unset(rest):
    await rest.ask("PATCH", "/1.0", {"config": {"user.b": "1"}})
    await rest.ask("PATCH", "/1.0", {"config": {"user.b": None}})
    assert (await rest.ask("GET", "/1.0")).metadata["config"] == {}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"config": {"foo.bar": "1"}}, 400),
        ({"config": {"user.b": 5}}, 400),
        ({"config": [1]}, 400),
        ("hello", 400),
        ([], 400),
    ],
)
async def test_bad_bodies(rest, body, status):
    answer = await rest.ask("PUT", "/1.0", body)
    assert answer.status == status
    assert answer.error
    assert (await rest.ask("GET", "/1.0")).metadata["config"] == {}


async def test_strangers_see_the_public_part_and_change_nothing(rest, tmp_path):
    await rest.ask("PATCH", "/1.0", {"config": {"user.secret": "x"}})
    for pair in (None, client_pair(tmp_path / "client", "mallory")):
        async with rest.tls(pair) as session:
            seen = await rest.ask("GET", "/1.0", session=session)
            assert seen.metadata["auth"] == "untrusted"
            assert "environment" not in seen.metadata
            assert "secret" not in str(seen.body)
            for method, path in (("PUT", "/1.0"), ("PATCH", "/1.0"), ("GET", "/1.0/resources")):
                refused = await rest.ask(method, path, {"config": {"user.secret": "y"}}, session=session)
                assert (refused.status, refused.error) == (403, "not authorized")
    assert (await rest.ask("GET", "/1.0")).metadata["config"] == {"user.secret": "x"}


async def test_unknown_target_and_method(rest):
    answer = await rest.ask("GET", "/1.0?target=foo")
    assert (answer.status, answer.error) == (404, "Cluster member not found")
    assert (await rest.ask("GET", "/1.0?target=none")).status == 200
    answer = await rest.ask("POST", "/1.0", {})
    assert (answer.status, answer.error) == (501, "not implemented")


async def test_resources_and_metadata(rest):
    assert (await rest.ask("GET", "/1.0/resources")).metadata["cpu"]["total"] >= 1
    configs = (await rest.ask("GET", "/1.0/metadata/configuration")).metadata["configs"]
    assert {"server", "instance", "project"} <= set(configs)
