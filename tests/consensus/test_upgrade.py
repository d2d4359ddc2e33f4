"""A rolling upgrade of the runtime: what is new waits for the last member, and entries before that look as they did."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import pytest

from incus_actors.consensus import log_store, opening
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import EntryKind
from incus_actors.errors import UnavailableError
from incus_actors.model.features import SUPPORTED, encode_level
from incus_actors.state.apply import Applier
from incus_actors.state.codec import decode_transaction
from incus_actors.state.position import FeatureTooNewError
from incus_actors.state.schema import SCHEMA_VERSION, current_version

from .runtime_kit import Network, applied, grown, insert, leading, stop_all, until


def last_min_schema(root: Path, member: int) -> int:
    """What the newest SQL entry in the log of a member says about its tables."""
    with sqlite3.connect(f"file:{root / str(member) / 'log.db'}?mode=ro", uri=True) as connection:
        query = "SELECT body FROM entries WHERE kind = ? ORDER BY idx DESC LIMIT 1"
        (body,) = connection.execute(query, (int(EntryKind.SQL),)).fetchone()
    return decode_transaction(body, schema=False).min_schema


async def test_what_is_new_waits_for_the_last_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_store, "supported_with", lambda version: 1)
    network = Network()
    runtimes = await grown(tmp_path, network)
    try:
        for member in (1, 2, 3):
            leader = leading(runtimes)
            await until(lambda leader=leader: leader.status().level_of_all() == 1)  # type: ignore[misc]
            await leader.upgrade()
            assert leader.status().feature_level <= 1
            with pytest.raises(UnavailableError, match="not every member of the cluster can apply it yet"):
                await leader._propose_upkeep(EntryKind.FEATURE, encode_level(SUPPORTED))
            await applied(leader, insert(member))
            assert last_min_schema(tmp_path, leader.member_id) == 0
            monkeypatch.setattr(log_store, "supported_with", lambda version: SUPPORTED)
            await runtimes[member].restart()
            await until(lambda: any(r.status().leader for r in runtimes.values()))
            await applied(runtimes[member], insert(10 + member))
            if member < 3:
                monkeypatch.setattr(log_store, "supported_with", lambda version: 1)
        leader = leading(runtimes)
        await until(lambda: leader.status().level_of_all() == SUPPORTED)
        assert await leader.upgrade()
        for runtime in runtimes.values():
            await until(lambda runtime=runtime: runtime.status().feature_level == SUPPORTED)  # type: ignore[misc]
        await until(lambda: current_version(leader.database) == SCHEMA_VERSION)
        await applied(leader, insert(99))
        assert last_min_schema(tmp_path, leader.member_id) == SCHEMA_VERSION
        assert not await leader.upgrade()
    finally:
        await stop_all(runtimes)


async def test_an_older_release_does_not_start_on_what_is_switched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network()
    runtimes = await grown(tmp_path, network, size=1)
    await runtimes[1].upgrade()
    await stop_all(runtimes)
    monkeypatch.setattr(opening, "Applier", partial(Applier, supported=SUPPORTED - 1))
    again = ConsensusRuntime(tmp_path / "1", network.lane, realtime=False)
    with pytest.raises(FeatureTooNewError, match="upgrade incus_actors on this server"):
        await again.start()
