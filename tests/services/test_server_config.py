"""PUT and PATCH of the server's configuration, as a real Incus 6.0.4 answered the same requests."""

from __future__ import annotations

import asyncio

import pytest
from service_kit import Seen, running_services

from incus_actors.errors import BadRequestError, MemberError, NotImplementedHereError, PreconditionFailedError


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


async def test_put_replaces_but_absent_user_keys_survive(kit):
    config = kit.services.config
    await config.patch({"user.a": "1", "user.b": "2", "cluster.max_voters": "5"})
    assert config.effective() == {"cluster.max_voters": "5", "user.a": "1", "user.b": "2"}
    await config.replace({"user.a": "", "images.auto_update_interval": "7"})
    assert config.effective() == {"images.auto_update_interval": "7", "user.b": "2"}
    await config.replace({"user.c": "x", "images.auto_update_interval": "6"})
    assert config.effective() == {"user.b": "2", "user.c": "x"}
    await config.replace(None)
    assert config.effective() == {"user.b": "2", "user.c": "x"}


async def test_defaults_are_values_but_not_stored(kit):
    config = kit.services.config
    assert config.value("cluster.max_voters") == "3"
    assert config.configured("cluster.max_voters") == ""
    assert await config.patch({"cluster.max_voters": "3"}) == frozenset()
    await config.patch({"images.auto_update_cached": "Off"})
    assert config.effective() == {"images.auto_update_cached": "false"}


@pytest.mark.parametrize("what", ["backups", "images"])
async def test_nothing_is_taken_that_would_have_no_effect(kit, what):
    with pytest.raises(NotImplementedHereError) as refused:
        await kit.services.config.patch({f"storage.{what}_volume": "local/v1"})
    assert str(refused.value) == (
        f'Failed validation of "storage.{what}_volume": Keeping {what} on a storage volume is not supported yet'
    )
    assert kit.services.config.effective() == {}
    await kit.services.config.patch({f"storage.{what}_volume": ""})


async def test_local_keys_belong_to_this_member_and_others_to_all(kit):
    await kit.services.config.patch({"core.https_address": "127.0.0.1:9", "user.x": "y"})
    rows = kit.database.query("SELECT node_id, key, value FROM node_server_config")
    assert [tuple(row) for row in rows] == [(1, "core.https_address", "127.0.0.1:9")]
    assert kit.database.scalar("SELECT COUNT(*) FROM config") == 1
    await kit.add_member(2, "node2")
    await kit.sql("INSERT INTO node_server_config (node_id, key, value) VALUES (2, 'core.https_address', 'b:1')")
    assert kit.services.config.configured("core.https_address") == "127.0.0.1:9"


async def test_a_member_that_stands_in_for_another_shows_and_keeps_that_ones_own_keys(kit):
    config = kit.services.config
    await config.patch({"core.https_address": "127.0.0.1:9"})
    await kit.add_member(2, "node2")
    await kit.sql("INSERT INTO node_server_config (node_id, key, value) VALUES (2, 'core.https_address', 'b:1')")
    whole = config.effective(2)
    assert whole == {"core.https_address": "b:1"}
    await config.replace({**whole, "user.x": "y"}, member_id=2)
    assert config.effective(2) == {"core.https_address": "b:1", "user.x": "y"}
    assert config.effective() == {"core.https_address": "127.0.0.1:9", "user.x": "y"}
    with pytest.raises(MemberError, match="cut off"):
        await config.patch({"core.https_address": "127.0.0.1:10"}, member_id=2)
    assert config.effective(2) == {"core.https_address": "b:1", "user.x": "y"}


async def test_a_bad_value_changes_nothing(kit):
    config = kit.services.config
    with pytest.raises(BadRequestError, match=r"^cannot set 'foo.bar' to '1': unknown key$"):
        await config.replace({"user.ok": "1", "foo.bar": "1"})
    assert config.effective() == {}


async def test_an_address_that_cannot_be_bound_is_not_stored(kit):
    config = kit.services.config
    await config.patch({"core.https_address": "127.0.0.1:9"})
    with pytest.raises(MemberError, match="Cannot listen"):
        await config.patch({"core.https_address": "1.2.3.4:8443"})
    assert config.configured("core.https_address") == "127.0.0.1:9"
    kit.bound.clear()
    await config.patch({"core.https_address": "127.0.0.1:9", "user.z": "1"})
    assert kit.bound == []  # the same address needs no trial


async def test_an_address_that_is_only_kept_must_resolve(kit):
    config = kit.services.config
    for address in ("foo.invalid", "foo.invalid:8444"):
        with pytest.raises(BadRequestError) as refused:
            await config.patch({"core.debug_address": address})
        assert str(refused.value) == f"cannot set 'core.debug_address' to '{address}': Couldn't resolve \"foo.invalid\""
    await config.patch({"core.debug_address": "127.0.0.1:7777", "core.dns_address": ":53"})
    assert config.configured("core.debug_address") == "127.0.0.1:7777"
    assert kit.bound == []


async def test_cluster_address_cannot_change_once_clustered(kit):
    config = kit.services.config
    await config.patch({"cluster.https_address": "127.0.0.1:8443"})
    await kit.become_clustered()
    for values in ({}, {"cluster.https_address": "127.0.0.1:1"}):
        with pytest.raises(MemberError, match=r"^Changing cluster\.https_address is currently not supported$"):
            await config.replace(values)
    await config.replace({"cluster.https_address": "127.0.0.1:8443", "user.x": "1"})
    await config.patch({"user.x": "2"})


async def test_hooks_hear_of_a_change_before_the_answer_and_of_others_changes(kit):
    heard = []

    async def hook(changed, now):
        heard.append((changed, dict(now)))

    unsubscribe = kit.services.config.on_change(hook)
    await kit.services.config.patch({"user.x": "1"})
    assert heard == [(frozenset({"user.x"}), {"user.x": "1"})]
    await kit.sql("INSERT INTO config (key, value) VALUES ('cluster.max_voters', '5')")
    async with asyncio.timeout(5):
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    assert heard[1][0] == frozenset({"cluster.max_voters"})
    unsubscribe()
    await kit.services.config.patch({"user.x": "2"})
    assert len(heard) == 2


async def test_a_failing_hook_stops_neither_the_answer_nor_the_next_hook(kit, caplog):
    heard = []

    async def broken(changed, now):
        raise OSError("no such interface")

    async def hook(changed, now):
        heard.append(changed)

    kit.services.config.on_change(broken)
    kit.services.config.on_change(hook)
    await kit.services.config.patch({"user.x": "1"})
    assert heard == [frozenset({"user.x"})]
    assert "no such interface" in caplog.text


async def test_if_match_of_something_old_is_refused(kit):
    config = kit.services.config
    seen = config.effective()
    await config.patch({"user.x": "1"})
    with pytest.raises(PreconditionFailedError):
        await config.replace({"user.x": "2"}, expect=Seen(seen))
    await config.replace({"user.x": "3"}, expect=Seen({"user.x": "1"}))
    assert config.effective() == {"user.x": "3"}


async def test_writers_at_the_same_time_lose_nothing(kit):
    await asyncio.gather(*(kit.services.config.patch({f"user.k{n}": "v"}) for n in range(6)))
    assert len(kit.services.config.effective()) == 6


async def test_writers_of_different_keys_do_not_disturb_each_other(kit):
    """Twenty at once, all reading before any has written: no one is sent away, nothing is lost."""
    config = kit.services.config
    await asyncio.gather(*(config.patch({f"user.k{number}": str(number)}) for number in range(20)))
    assert config.effective() == {f"user.k{number}": str(number) for number in range(20)}
