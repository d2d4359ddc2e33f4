"""Warnings: counted, acknowledged, resolved, deleted."""

from __future__ import annotations

import pytest
from service_kit import running_services

from incus_actors.errors import BadRequestError, ForbiddenError, NotFoundError
from incus_actors.services.warnings import WarningKind


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


async def test_the_same_again_is_counted_and_another_member_is_another_warning(kit):
    warnings = kit.services.warnings
    await kit.add_member(2, "node2")
    await warnings.raised(WarningKind.OFFLINE_MEMBER, "No heartbeat for 21s", member_id=2)
    kit.clock_ns[0] += 5_000_000_000
    await warnings.raised(WarningKind.OFFLINE_MEMBER, "No heartbeat for 26s", member_id=2)
    await warnings.raised(WarningKind.OFFLINE_MEMBER, "No heartbeat for 26s", member_id=1)
    found = {warning.location: warning for warning in warnings.list()}
    assert sorted(found) == ["node2", "none"]
    one = found["node2"]
    assert (one.count, one.type, one.severity, one.status) == (2, "Offline cluster member", "low", "new")
    assert (one.first_seen_at, one.last_seen_at) == ("2026-09-21T14:13:20Z", "2026-09-21T14:13:25Z")
    assert one.last_message == "No heartbeat for 26s"
    assert warnings.list("default") == []


async def test_states(kit):
    warnings = kit.services.warnings
    await warnings.raised(WarningKind.APPARMOR_DISABLED, "m")
    uuid = warnings.list()[0].uuid
    await warnings.set_status(uuid, "acknowledged")
    await warnings.raised(WarningKind.APPARMOR_DISABLED, "m")
    assert warnings.get(uuid).status == "acknowledged"
    await warnings.resolved(WarningKind.APPARMOR_DISABLED)
    assert warnings.get(uuid).status == "resolved"
    await warnings.raised(WarningKind.APPARMOR_DISABLED, "m")
    assert (warnings.get(uuid).status, warnings.get(uuid).count) == ("new", 3)
    with pytest.raises(BadRequestError, match=r'^Invalid warning type "foo"$'):
        await warnings.set_status(uuid, "foo")
    with pytest.raises(ForbiddenError, match=r'^Status may only be set to "acknowledge" or "new"$'):
        await warnings.set_status(uuid, "resolved")
    await warnings.delete(uuid)
    for missing in (warnings.delete(uuid), warnings.set_status(uuid, "new")):
        with pytest.raises(NotFoundError, match=r"^Warning not found$"):
            await missing


async def test_a_member_takes_its_warnings_along(kit):
    await kit.add_member(2, "node2")
    await kit.services.warnings.raised(WarningKind.OFFLINE_MEMBER, "m", member_id=2)
    await kit.sql("DELETE FROM nodes WHERE id = 2")
    assert kit.services.warnings.list() == []
