"""/1.0/warnings."""

from __future__ import annotations

import pytest
from plain_rest_kit import running_rest

from incus_actors.services.warnings import WarningKind

PATH = "/1.0/warnings"


@pytest.fixture
async def rest(tmp_path):
    async with running_rest(tmp_path) as found:
        yield found


async def test_list_acknowledge_delete(rest):
    await rest.kit.services.warnings.raised(WarningKind.OFFLINE_MEMBER, "m", member_id=1)
    urls = (await rest.ask("GET", PATH)).metadata
    assert len(urls) == 1
    shown = (await rest.ask("GET", f"{PATH}?recursion=1")).metadata[0]
    assert list(shown) == [
        "status",
        "uuid",
        "location",
        "project",
        "type",
        "count",
        "first_seen_at",
        "last_seen_at",
        "last_message",
        "severity",
        "entity_url",
    ]
    assert (await rest.ask("PUT", urls[0], {"status": "acknowledged"})).metadata == {}
    assert (await rest.ask("GET", urls[0])).metadata["status"] == "acknowledged"
    assert (await rest.ask("GET", f"{PATH}?filter=status+eq+new")).metadata == []
    assert (await rest.ask("PATCH", urls[0], {"status": "foo"})).status == 400
    assert (await rest.ask("DELETE", urls[0])).metadata == {}
    gone = await rest.ask("GET", urls[0])
    assert (gone.status, gone.error) == (404, "Warning not found")
    assert [event["action"] for event in rest.lifecycle] == ["warning-acknowledged", "warning-deleted"]
