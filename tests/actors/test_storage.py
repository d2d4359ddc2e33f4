"""StorageActor: one piece of work per volume at a time, errors are answers, leftovers go at the start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from instance_kit import machines, until

from incus_actors.actors import pool_watch
from incus_actors.actors.host import STORAGE_PATH
from incus_actors.actors.storage_messages import (
    CheckPool,
    CreatePool,
    CreateVolume,
    DeletePool,
    DeleteVolume,
    PoolUsage,
    RenameVolume,
)
from incus_actors.drivers.base import DriverError, PoolSpec, VolumeSpec
from incus_actors.errors import BadRequestError, UnavailableError
from incus_actors.tasks import spawn


class SlowStorage:
    """A storage driver that records who works at the same time."""

    caches_images = False

    def __init__(self) -> None:
        self.busy: list[str] = []
        self.together: list[tuple[str, ...]] = []
        self.gate = asyncio.Event()
        self.reconciled: list[str] = []

    async def _work(self, volume: VolumeSpec) -> None:
        self.busy.append(volume.name)
        self.together.append(tuple(sorted(self.busy)))
        await self.gate.wait()
        self.busy.remove(volume.name)

    async def create_volume(self, volume: VolumeSpec, image: Any = None, *, progress: Any = None) -> Path:
        await self._work(volume)
        return Path("/made")

    async def delete_volume(self, volume: VolumeSpec) -> None:
        await self._work(volume)

    async def rename_volume(self, volume: VolumeSpec, new: VolumeSpec) -> None:
        raise OSError(28, "No space left on device")

    async def activate_pool(self, pool: PoolSpec) -> None:
        """It is always there."""

    async def reconcile(self, pool: PoolSpec) -> list[str]:
        self.reconciled.append(pool.name)
        return ["removed something"]


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        yield one


def volume(name: str) -> VolumeSpec:
    return VolumeSpec(PoolSpec("local", "slow"), name)


async def test_work_on_one_volume_waits_for_the_other(machine):
    slow = SlowStorage()
    machine.host.storage["slow"] = slow
    ref = machine.server.actors.ref(STORAGE_PATH)
    asks = [
        spawn(ref.ask(message, deadline_s=5), name="test")
        for message in (
            CreateVolume(volume("a"), None),
            DeleteVolume(volume("a")),
            CreateVolume(volume("b"), None),
            CreateVolume(volume("c"), None),
        )
    ]
    await until(lambda: len(slow.busy) == 2)
    await asyncio.sleep(0.01)
    assert slow.together == [("a",), ("a", "b")]  # two unpack at a time, and nothing else touches "a"
    slow.gate.set()
    assert (await asyncio.gather(*asks))[0] == Path("/made")


async def test_a_failing_machine_is_an_answer_and_the_actor_lives(machine):
    machine.host.storage["slow"] = SlowStorage()
    ref = machine.server.actors.ref(STORAGE_PATH)
    with pytest.raises(DriverError, match="No space left on device"):
        await ref.ask(RenameVolume(volume("a"), volume("b")), deadline_s=5)
    with pytest.raises(BadRequestError, match='Failed loading storage driver "zfs"'):
        await ref.ask(PoolUsage(PoolSpec("p", "zfs")), deadline_s=5)
    assert (await ref.ask(PoolUsage(PoolSpec("local")), deadline_s=5)).total_bytes > 0


async def test_pools_come_and_go(machine):
    ref = machine.server.actors.ref(STORAGE_PATH)
    made = await ref.ask(CreatePool(PoolSpec("second")), deadline_s=5)
    assert Path(made["source"]).is_dir()
    await ref.ask(DeletePool(PoolSpec("second", config=made)), deadline_s=5)
    assert not Path(made["source"]).exists()


async def test_a_pool_without_its_driver_is_removed_only_where_nothing_was_made_of_it(machine):
    ref = machine.server.actors.ref(STORAGE_PATH)
    pool = PoolSpec("p", "lvm")
    with pytest.raises(BadRequestError, match='Failed loading storage driver "lvm"'):
        await ref.ask(CreatePool(pool), deadline_s=5)
    await ref.ask(DeletePool(pool), deadline_s=5)
    for trace in ("storage-pools/p", "disks/p.img"):
        path = machine.host.directory / trace
        path.mkdir(parents=True)
        with pytest.raises(BadRequestError, match='Failed loading storage driver "lvm"'):
            await ref.ask(DeletePool(pool), deadline_s=5)
        path.rmdir()


async def test_leftovers_go_at_the_start_also_if_one_pool_is_broken(machine):
    slow = SlowStorage()
    machine.host.storage["slow"] = slow

    async def broken(pool: PoolSpec) -> list[str]:
        raise DriverError("the disk is gone")

    machine.storage.reconcile = broken
    await machine.execute("INSERT INTO storage_pools (name, driver, state) VALUES ('s', 'slow', 1)")
    await machine.execute("INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES (2, 1, 1)")
    await machine.restart()
    assert slow.reconciled == ["s"]


async def test_a_missing_pool_is_a_warning_until_it_is_back_or_gone(machine, monkeypatch):
    monkeypatch.setattr(pool_watch, "AGAIN_S", 0.02)
    slow = machine.host.storage["slow"] = SlowStorage()
    away = {"s", "t"}

    async def activate(pool: PoolSpec) -> None:
        if pool.name in away:
            raise DriverError("the disk is gone")

    slow.activate_pool = activate
    for number, name in enumerate("st", 2):
        await machine.execute(f"INSERT INTO storage_pools (name, driver, state) VALUES ('{name}', 'slow', 1)")
        await machine.execute(
            f"INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES ({number}, 1, 1)"
        )
    await machine.restart()

    def warnings() -> dict[str, int]:
        rows = machine.server.database.query("SELECT last_message, status FROM warnings ORDER BY entity_id")
        return {str(row[0]): int(row[1]) for row in rows}

    await until(lambda: warnings() == {"s: the disk is gone": 1, "t: the disk is gone": 1})
    with pytest.raises(UnavailableError, match="Storage pool is unavailable on this server"):
        await machine.server.actors.ref(STORAGE_PATH).ask(CheckPool(PoolSpec("s", "slow")), deadline_s=5)
    away.remove("s")
    await until(lambda: warnings() == {"s: the disk is gone": 3, "t: the disk is gone": 1})
    await machine.server.actors.ref(STORAGE_PATH).ask(CheckPool(PoolSpec("s", "slow")), deadline_s=5)
    await machine.execute("DELETE FROM storage_pools WHERE name = 't'")
    await until(lambda: warnings() == {"s: the disk is gone": 3, "t: the disk is gone": 3})
