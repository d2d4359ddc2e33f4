"""Snapshots that come by themselves, and those that go."""

from __future__ import annotations

import os
from datetime import datetime, timedelta

import pytest
from instance_kit import machines, until

from incus_actors.errors import MemberError
from incus_actors.model.volumes import BackupsPost, SnapshotsPost, VolumesPost
from incus_actors.services.volume_schedule import VolumeSchedule
from incus_actors.services.volume_tools import VolumeAddress

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="volumes belong to root")


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        yield one


def at(name: str) -> VolumeAddress:
    return VolumeAddress("local", "default", "custom", name)


async def make(machine, name: str, **config: str) -> None:
    given = {f"snapshots.{key}": value for key, value in config.items()}
    await machine.volumes.life.create("local", "default", VolumesPost(name=name, config=given))


def schedule_at(machine, moment: datetime) -> VolumeSchedule:
    cases = machine.volumes
    return VolumeSchedule(cases.life._tools, cases.snapshots, cases.backups, now=lambda: moment)


async def test_a_snapshot_comes_when_it_is_due(machine):
    await make(machine, "daily", schedule="@daily", pattern="auto%d")
    await make(machine, "startup", schedule="@startup")
    await make(machine, "nothing")
    midnight = datetime(2026, 3, 1).astimezone()
    await schedule_at(machine, midnight + timedelta(minutes=1)).tick()
    names = machine.volumes.snapshots.names
    assert names(at("daily")) == []
    await schedule_at(machine, midnight).tick()
    await schedule_at(machine, midnight).tick(starting=True)
    assert names(at("daily")) == ["auto0"]
    assert names(at("startup")) == ["snap0"]
    assert names(at("nothing")) == []


async def test_what_has_expired_goes(machine):
    await make(machine, "v", expiry="1d")
    for name, expires_at in (("old", None), ("kept", "2100-01-01T00:00:00Z"), ("never", "0001-01-01T00:00:00Z")):
        await machine.volumes.snapshots.create(at("v"), SnapshotsPost(name=name, expires_at=expires_at))
    post = BackupsPost(expires_at="2026-12-01T00:00:00Z")
    machine.volumes.backups.check_new(at("v"), post)
    await machine.volumes.backups.create(at("v"), post)
    await schedule_at(machine, datetime.now().astimezone()).tick()
    assert machine.volumes.snapshots.names(at("v")) == ["old", "kept", "never"]
    await schedule_at(machine, datetime(2099, 1, 1).astimezone()).tick()
    assert machine.volumes.snapshots.names(at("v")) == ["kept", "never"]
    assert machine.volumes.backups.all_of(at("v")) == []
    assert list((machine.server.directory / "backups/custom").iterdir()) == []


async def test_one_that_fails_keeps_no_other_from_its_turn(machine, monkeypatch, caplog):
    for name in ("a", "b"):
        await make(machine, name, schedule="* * * * *")
    real = machine.storage.create_snapshot

    async def broken(volume, snapshot):
        if volume.name == "a":
            raise MemberError("No space left on device")
        await real(volume, snapshot)

    monkeypatch.setattr(machine.storage, "create_snapshot", broken)
    await schedule_at(machine, datetime(2026, 3, 1).astimezone()).tick()
    assert machine.volumes.snapshots.names(at("a")) == []
    assert machine.volumes.snapshots.names(at("b")) == ["snap0"]
    assert "no scheduled snapshot of volume a" in caplog.text


async def test_the_daemon_begins_with_what_is_wanted_at_the_start(machine):
    await make(machine, "startup", schedule="@startup")
    machine.volumes.schedule.start()
    await until(lambda: machine.volumes.snapshots.names(at("startup")) == ["snap0"])
    machine.volumes.schedule.stop()
