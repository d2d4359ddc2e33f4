"""New instances: where they go and what is refused, with the texts of a real Incus 6.0.4."""

from __future__ import annotations

import asyncio
import os

import pytest
from instance_kit import ignore, machines, until

from incus_actors.domain.instance_config import PHASE_KEY
from incus_actors.errors import ApiError, ForbiddenError, NotFoundError, OutcomeUnknownError
from incus_actors.model.instances import InstanceSource, InstancesPost

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images with owners: run as root")

RECORD = "Failed creating instance record: "
DEVICES = f"{RECORD}Failed initializing instance: Invalid devices: Device validation failed for "


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        await one.add_image()
        yield one


def post(**fields) -> InstancesPost:
    return InstancesPost(**{"name": "c1", "source": InstanceSource(type="image", alias="tiny"), **fields})


async def test_requests_that_are_refused_at_once(machine):
    cases = [
        ({"name": "a_b"}, 400, "Invalid instance name: Name can only contain alphanumeric and hyphen characters"),
        ({"name": "a/b"}, 400, 'Invalid instance name: The character "/" is reserved for snapshots'),
        ({"name": "12"}, 400, "Invalid instance name: Name cannot be a number"),
        ({"type": "foo"}, 400, "Invalid instance type"),
        ({"type": "virtual-machine"}, 501, "Virtual machines are not supported yet"),
        ({"source": InstanceSource()}, 400, "Unknown source type "),
        ({"source": InstanceSource(type="foo")}, 400, "Unknown source type foo"),
        (
            {"source": InstanceSource(type="none")},
            501,
            'Creating instances with source type "none" is not supported yet',
        ),
        ({"source": InstanceSource(type="copy")}, 400, "Must specify a source instance"),
        (
            {"source": InstanceSource(type="image")},
            500,
            "Must specify one of alias, fingerprint or properties for init from image",
        ),
        ({"profiles": ["nope"]}, 500, 'Requested profile "nope" doesn\'t exist'),
        ({"instance_type": "c9.huge"}, 400, "Bad custom instance type: c9.huge"),
    ]
    for fields, status, text in cases:
        with pytest.raises(ApiError) as refused:
            machine.instances.creator.check("default", post(**fields))
        assert (refused.value.status, str(refused.value)) == (status, text)
    with pytest.raises(NotFoundError, match="Project not found"):
        machine.instances.creator.check("nope", post())


async def test_requests_whose_operation_fails(machine):
    root = {"type": "disk", "path": "/", "pool": "local"}
    cases = [
        ({"source": InstanceSource(type="image", alias="nope")}, "Image not provided for instance creation"),
        (
            {"profiles": []},
            f"{RECORD}Failed initializing instance: Failed getting root disk: No root device could be found",
        ),
        ({"profiles": ["default", "default"]}, f"{RECORD}Duplicate profile found in request"),
        ({"config": {"foo.bar": "1"}}, f"{RECORD}Unknown configuration key: foo.bar"),
        ({"config": {"volatile.actors.phase": "x"}}, f"{RECORD}Unknown configuration key: volatile.actors."),
        ({"config": {"limits.cpu": "abc"}}, f"{RECORD}Invalid CPU limit syntax"),
        ({"devices": {"d": {"type": "foo"}}}, f'{RECORD}Invalid device type "foo"'),
        (
            {"devices": {"d": {"type": "disk"}}},
            f'{DEVICES}"d": Disk entry is missing the required "source" or "path" property',
        ),
        (
            {"devices": {"root": {"type": "disk", "path": "/"}}},
            f'{DEVICES}"root": Root disk entry must have a "pool" property set',
        ),
        (
            {"devices": {"root": {**root, "size": "foo"}}},
            f'{DEVICES}"root": Invalid value for device option "size": Invalid value: foo',
        ),
        ({"devices": {"root2": root}}, f'{DEVICES}"root2": More than one disk device uses the same path "/"'),
        (
            {"devices": {"root": {**root, "pool": "nope"}}},
            f"{RECORD}Failed initializing instance: Failed loading storage pool: Storage pool not found",
        ),
    ]
    for fields, text in cases:
        request = post(**fields)
        with pytest.raises(ApiError) as refused:
            await machine.instances.creator.create("default", request, ignore)
        assert str(refused.value) == text
        assert not machine.exists("c1")


async def test_a_taken_name_is_the_unique_text_of_incus(machine):
    await machine.create()
    text = (
        f'{RECORD}Add instance info to the database: Failed to create "instances" entry: '
        "UNIQUE constraint failed: instances.project_id, instances.name"
    )
    with pytest.raises(ApiError) as refused:
        await machine.create()
    assert str(refused.value) == text
    assert machine.exists("c1")
    assert machine.volume("c1").exists()


async def test_a_race_for_a_name_has_one_winner(machine):

    results = await asyncio.gather(*(machine.create("c1") for _ in range(4)), return_exceptions=True)
    assert [result for result in results if not isinstance(result, Exception)] == [None]
    assert machine.volume("c1").exists()
    assert PHASE_KEY not in machine.config("c1")


async def test_rows_that_were_committed_after_all_are_removed_again(machine):
    propose = machine.server.consensus.propose

    async def unknown(transaction, **rest):
        machine.server.consensus.propose = propose
        assert (await propose(transaction, **rest)).applied
        raise OutcomeUnknownError("no answer until the deadline")

    machine.server.consensus.propose = unknown
    with pytest.raises(OutcomeUnknownError):
        await machine.create()
    await until(lambda: not machine.exists("c1"))
    await machine.create()


async def test_a_name_is_made_up(machine):
    request = post(name="")
    machine.instances.creator.check("default", request)
    assert request.name.count("-") == 1


async def test_progress_reads_as_in_incus(machine):
    told = []
    await machine.instances.creator.create("default", post(), lambda *report: told.append(report))
    stage, percent, speed, text = told[-1]
    assert stage == "create_instance_from_image_unpack"
    assert percent == 100
    assert speed is not None
    assert text.startswith("Unpacking image: 100% (")


async def test_an_evacuated_member_takes_none(tmp_path):
    async with machines(tmp_path, 2, clustered=True) as (first, second):
        await first.add_image()
        await first.execute("UPDATE nodes SET state = 2 WHERE id = 2")
        await second.server.consensus.read_barrier()
        with pytest.raises(ForbiddenError, match=r"^Cluster member is evacuated$"):
            await second.create("c2")
        assert not second.exists("c2")


async def test_the_image_comes_from_the_member_that_has_it(tmp_path):
    async with machines(tmp_path, 2, clustered=True) as (first, second):
        first.members.offline = {2}
        fingerprint = await first.add_image()
        await second.server.consensus.read_barrier()
        await second.create("c2", start=True)
        assert second.fetches == [1]
        assert (second.volume("c2") / "rootfs/etc/content").exists()
        await first.server.consensus.read_barrier()
        found = await first.instances.life.list_instances(None, full=True)
        assert [(i.name, i.status, i.location) for i in found] == [("c2", "Error", "node2")]
        assert (found[0].architecture, found[0].profiles, found[0].state) == ("", None, None)
        first.members.offline = set()
        await until(lambda: second.images.get(fingerprint) is not None)
        found = await first.instances.life.list_instances(None, full=True)
        assert [(i.name, i.status, i.location) for i in found] == [("c2", "Running", "node2")]
        assert found[0].state.pid == 1000


async def test_a_project_has_no_room_or_forbids_it(machine):
    projects = machine.host.consensus()
    config = {"limits.instances": "1", "restricted": "true"}

    async def set_config(**changed: str) -> None:
        from incus_actors.model.transaction import Statement, Transaction

        wanted = {**config, **changed}
        statements = [Statement("DELETE FROM projects_config WHERE project_id = 1 AND key NOT LIKE 'features.%'")]
        statements += [
            Statement(
                "INSERT INTO projects_config (project_id, key, value) VALUES (1, ?, ?)", (key.replace("__", "."), value)
            )
            for key, value in sorted(wanted.items())
        ]
        assert (await projects.propose(Transaction(tuple(statements), topics=("projects",)))).applied

    await set_config()
    creator = machine.instances.creator
    with pytest.raises(ApiError, match=r"^Failed checking if instance creation allowed: .*Privileged containers are"):
        creator.check("default", post(config={"security.privileged": "true"}))
    with pytest.raises(ApiError, match=r'^Setting "volatile.x" on container "c1" in project "default" is forbidden$'):
        creator.check("default", post(config={"volatile.x": "1"}))
    results = await asyncio.gather(
        *(creator.create("default", post(name=f"c{number}"), ignore) for number in range(3)), return_exceptions=True
    )
    refused = [str(result) for result in results if isinstance(result, BaseException)]
    assert refused == ['Reached maximum number of instances in project "default"'] * 2
    assert machine.host.database().scalar("SELECT COUNT(*) FROM instances") == 1
    with pytest.raises(ApiError, match="Reached maximum number"):
        creator.check("default", post(name="c9"))
