"""Moving a member: what is refused, and what is undone when the transaction does not come about."""

from __future__ import annotations

from typing import Any, cast

import pytest
from cluster_kit import servers

from incus_actors.errors import ApiError, BadRequestError, MemberError, UnavailableError
from incus_actors.services.server_config import ServerConfigService


async def no_check(_key: str, _address: str, _current: Any) -> None:
    pass


@pytest.fixture
async def two(tmp_path):
    async with servers(tmp_path, 2, clustered=True) as (one, other):
        config = ServerConfigService(
            consensus=one.consensus, database=one.database, identity=one.identity, check_bind=no_check
        )
        config.mover = one.cases.address
        one.done.clear()
        yield one, other, config


async def test_one_transaction_tells_everybody_where(two):
    one, other, config = two
    await config.patch({"cluster.https_address": "10.0.0.77"})
    await other.consensus.read_barrier()
    assert other.database.scalar("SELECT address FROM nodes WHERE id = 1") == "10.0.0.77:8443"
    assert config.configured("cluster.https_address") == "10.0.0.77"
    assert one.identity.address == "10.0.0.77:8443"
    assert one.done[:3] == ["listen_also", "move_lanes", "reload_listeners"]
    one.done.clear()
    await config.patch({"cluster.https_address": "10.0.0.77:8443"})  # the same place, spelt out
    assert one.done == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "Changing cluster.https_address is currently not supported"),
        ("10.0.0.2:8443", "Member node2 has the address 10.0.0.2:8443 already"),
        ("10.0.0.9:99999", "nvalid"),
    ],
)
async def test_refusals(two, address, words):
    one, _, config = two
    with pytest.raises(ApiError, match=words):
        await config.patch({"cluster.https_address": address})
    assert one.done == []


async def test_a_wildcard_is_no_address_of_a_member(two):
    one, _, config = two
    for address in ("[::]:8443", "0.0.0.0", ":8443"):
        with pytest.raises(BadRequestError):
            await config.patch({"cluster.https_address": address})
    assert one.done == []


async def test_what_failed_is_undone(two):
    one, _, config = two
    one.fail_hook = lambda name: OSError("no such address") if name == "move_lanes" else None
    with pytest.raises(MemberError, match=r"Failed to listen for members at 10\.0\.0\.77:8443: no such address"):
        await config.patch({"cluster.https_address": "10.0.0.77"})
    assert one.done == ["listen_also", "move_lanes", "reload_listeners"]
    one.fail_hook = lambda _name: None
    one.done.clear()

    async def nobody_leads(*_args: Any, **_kwargs: Any) -> Any:
        raise UnavailableError("no leader")

    real, config._consensus = config._consensus, cast(Any, type("C", (), {"propose": staticmethod(nobody_leads)})())
    with pytest.raises(UnavailableError):
        await config.patch({"cluster.https_address": "10.0.0.77"})
    config._consensus = real
    assert one.done == ["listen_also", "move_lanes", "lanes_moved", "reload_listeners"]
    assert one.database.scalar("SELECT address FROM nodes WHERE id = 1") == "10.0.0.1:8443"
