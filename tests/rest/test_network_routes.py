"""/1.0/networks, read only."""

from __future__ import annotations

import pytest
from plain_rest_kit import running_rest

PATH = "/1.0/networks"


@pytest.fixture
async def rest(tmp_path):
    async with running_rest(tmp_path) as found:
        yield found


async def test_interfaces_of_this_machine(rest):
    assert f"{PATH}/lo" in (await rest.ask("GET", PATH)).metadata
    listed = (await rest.ask("GET", f"{PATH}?recursion=1&filter=name+eq+lo")).metadata
    one = await rest.ask("GET", f"{PATH}/lo")
    assert listed == [one.metadata]
    assert one.metadata["locations"] is None
    assert one.headers["Etag"]
    state = await rest.ask("GET", f"{PATH}/lo/state")
    assert state.metadata["state"] == "up"
    missing = await rest.ask("GET", f"{PATH}/nope")
    assert (missing.status, missing.error) == (404, "Network not found")


async def test_nothing_can_be_changed_yet(rest):
    for method, path in (("POST", PATH), ("PUT", f"{PATH}/lo"), ("DELETE", f"{PATH}/lo")):
        answer = await rest.ask(method, path, {"name": "x"})
        assert (answer.status, answer.error) == (501, "not implemented")
