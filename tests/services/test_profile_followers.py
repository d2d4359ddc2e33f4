"""A change of a profile is answered when the instances of all members have taken it over, and tells of those that could
not, with the words of a real Incus 6.0.4."""

from __future__ import annotations

import asyncio
import os

import pytest
from instance_kit import Machine, machines

from incus_actors.drivers.base import DriverError
from incus_actors.errors import MemberError
from incus_actors.model.instances import InstancePatch, InstanceStatePut
from incus_actors.model.resources import ProfilePut
from incus_actors.services.profile_followers import ProfileFollowers
from incus_actors.services.profiles import ProfileService
from incus_actors.tasks import spawn

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images with owners: run as root")

HEAD = "The following instances failed to update (profile change still saved):\n"


@pytest.fixture
async def two(tmp_path):
    async with machines(tmp_path, 2, clustered=True) as found:
        await found[0].add_image()
        for machine, name in zip(found, ("c1", "c2"), strict=True):
            await machine.create(name, start=True)
        yield found


def service(machine: Machine) -> ProfileService:
    server = machine.server
    followers = ProfileFollowers(server.database, server.identity, server.actors, machine.members.online)
    return ProfileService(consensus=server.consensus, database=server.database, followers=followers)


async def patch(machine: Machine, **devices: dict[str, str]) -> str:
    """Add devices to the default profile; return what is said against it."""
    try:
        await service(machine).update("default", "default", ProfilePut(devices=devices), patch=True)
    except MemberError as error:
        return str(error)
    return ""


def given(found: list[Machine]) -> list[list[str]]:
    """What the running instances of each were given last."""
    return [sorted(one.driver.devices.get(name, {})) for one, name in zip(found, ("c1", "c2"), strict=True)]


def disk(source: str, path: str = "/mnt/d") -> dict[str, str]:
    return {"type": "disk", "source": source, "path": path}


async def test_instances_of_all_members_have_it_when_the_change_is_answered(two):
    assert await patch(two[0], d=disk("/tmp")) == ""
    assert given(two) == [["d", "root"], ["d", "root"]]
    assert await patch(two[0], d=disk("/usr")) == ""
    assert [one.driver.devices[name]["d"]["source"] for one, name in ((two[0], "c1"), (two[1], "c2"))] == ["/usr"] * 2


async def test_what_fails_is_told_of_each_instance_and_the_change_is_kept(two):
    assert await patch(two[1], bad=disk("/nonexistent")) == (
        f'{HEAD} - Project: default, Instance: c1: Failed add validation for device "bad": Missing source path'
        ' "/nonexistent" for disk "bad"\n'
        ' - Project: default, Instance: c2: Failed add validation for device "bad": Missing source path'
        ' "/nonexistent" for disk "bad"\n'
    )
    assert "bad" in service(two[0]).get("default", "default").devices
    assert given(two) == [[], []]
    # It is told once, and keeps nothing else away.
    assert await patch(two[1], d=disk("/tmp", "/mnt/e")) == ""
    assert given(two) == [["d", "root"], ["d", "root"]]
    # A stopped one is not given anything, but is asked.
    await two[1].instances.life.change_state("default", "c2", InstanceStatePut(action="stop", force=True))
    assert (await patch(two[1], worse=disk("/nope", "/mnt/w"))).count("Failed add validation") == 2


async def test_a_machine_that_refuses_goes_back_and_says_so(two):
    two[1].driver.fail["update_devices"] = DriverError('Failed to start device "d": the port is taken')
    text = 'Project: default, Instance: c2: Failed to start device "d": the port is taken'
    assert await patch(two[0], d=disk("/tmp")) == f"{HEAD} - {text}\n"
    assert given(two) == [["d", "root"], ["root"]]


async def test_of_several_devices_those_that_can_be_given_are(two):
    said = await patch(two[0], a=disk("/nope", "/mnt/a"), b=disk("/tmp", "/mnt/b"))
    assert said.count('Missing source path "/nope"') == 2
    assert given(two) == [["b", "root"], ["b", "root"]]


async def test_limits_are_taken_over_though_every_device_is_refused(two):
    put = ProfilePut(config={"limits.processes": "9"}, devices={n: disk("/nope", f"/mnt/{n}") for n in "ab"})
    with pytest.raises(MemberError, match="Missing source path"):
        await service(two[0]).update("default", "default", put, patch=True)
    assert ["apply_limits c1" in two[0].driver.calls, "apply_limits c2" in two[1].driver.calls] == [True, True]


async def test_an_instances_own_change_is_possible_beside_a_refused_device_of_a_profile(two):
    await patch(two[0], bad=disk("/nonexistent"))
    own = InstancePatch(devices={"own": disk("/usr", "/mnt/own")})
    await two[0].instances.life.patch("default", "c1", own)
    assert given(two)[0] == ["own", "root"]


async def test_a_member_that_is_away_is_not_waited_for(two):
    two[0].members.offline = {two[1].server.consensus.member_id}
    hold = two[1].driver.hold["update_devices"] = asyncio.Event()
    assert await asyncio.wait_for(patch(two[0], d=disk("/tmp")), 2) == ""
    assert given(two)[0] == ["d", "root"]
    hold.set()


async def test_one_that_hangs_is_not_waited_for_for_long(two, monkeypatch):
    monkeypatch.setattr("incus_actors.actors.instances.FOLLOW_S", 0.2)
    hold = two[1].driver.hold["update_devices"] = asyncio.Event()
    work = spawn(patch(two[0], d=disk("/tmp")), name="test")
    assert await asyncio.wait_for(work, 5) == ""
    hold.set()
