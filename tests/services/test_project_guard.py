"""Requests against the limits and restrictions of their project, through the services that make them."""

from __future__ import annotations

import asyncio

import pytest
from service_kit import running_services

from incus_actors.errors import ApiError, BadRequestError, MemberError
from incus_actors.model.resources import ProfilePut, ProfilesPost, ProjectPut, ProjectsPost

ROOT = {"root": {"type": "disk", "path": "/", "pool": "local"}}


@pytest.fixture
async def kit(tmp_path):
    """Project p with instance c1, whose profile gives it half a GiB."""
    async with running_services(tmp_path) as found:
        await found.services.projects.create(ProjectsPost(name="p", config={}))
        await found.sql(
            "INSERT INTO storage_pools (id, name, driver, description, state) VALUES (9, 'local', 'dir', '', 1)",
        )
        await found.services.profiles.update(
            "p", "default", ProfilePut(config={"limits.memory": "512MiB"}, devices=ROOT)
        )
        project = found.database.scalar("SELECT id FROM projects WHERE name = 'p'")
        profile = found.database.scalar("SELECT id FROM profiles WHERE project_id = ?", (project,))
        await found.sql(
            "INSERT INTO instances (id, node_id, name, architecture, type, creation_date, project_id)"
            f" VALUES (1, 1, 'c1', 2, 0, '2026-01-01T00:00:00Z', {project})",
            f"INSERT INTO instances_profiles (instance_id, profile_id) VALUES (1, {profile})",
        )
        yield found


async def change(kit, **config: str) -> None:
    await kit.services.projects.update(
        "p", ProjectPut(config={k.replace("__", "."): v for k, v in config.items()}), patch=True
    )


async def test_limits_of_a_project_that_has_something_in_it(kit):
    with pytest.raises(MemberError, match=r'^"limits.memory" is too low: current total is "512.0MiB"$'):
        await change(kit, limits__memory="100MiB")
    with pytest.raises(MemberError, match="there currently are 1 instances of type container"):
        await change(kit, limits__containers="0")
    await change(kit, limits__memory="1GiB", limits__containers="1")
    with pytest.raises(MemberError) as refused:
        await kit.services.profiles.update("p", "default", ProfilePut(config={"limits.memory": "2GiB"}, devices=ROOT))
    assert str(refused.value) == (
        'Failed checking if profile update allowed: Reached maximum aggregate value "1GiB" for "limits.memory" in'
        ' project "p"'
    )
    assert refused.value.status == 500
    await kit.services.profiles.update("p", "default", ProfilePut(config={"limits.memory": "1GiB"}, devices=ROOT))


async def test_restrictions_of_a_project_that_has_something_in_it(kit):
    privileged = ProfilePut(config={"security.privileged": "true"}, devices=ROOT)
    await kit.services.profiles.update("p", "default", privileged)
    with pytest.raises(MemberError) as refused:
        await change(kit, restricted="true")
    assert str(refused.value) == (
        'Conflict detected when changing "restricted" in project "p": Invalid value "true" for config'
        ' "security.privileged" on container "c1" of project "p": Privileged containers are forbidden'
    )
    await change(kit, restricted="true", restricted__containers__privilege="allow")
    await kit.services.profiles.update("p", "default", ProfilePut(config={}, devices=ROOT))
    await change(kit, restricted__containers__privilege="unprivileged")
    with pytest.raises(MemberError, match=r"^Failed checking if profile update allowed: .* Privileged containers are"):
        await kit.services.profiles.update("p", "default", privileged)
    with pytest.raises(
        MemberError, match=r"^Failed checking if profile creation allowed: .* Privileged containers are"
    ):
        await kit.services.profiles.create("p", ProfilesPost(name="x", config={"security.privileged": "true"}))


async def test_projects_that_share_profiles_can_not_be_restricted(kit):
    with pytest.raises(BadRequestError, match=r"^Projects without their own profiles cannot be restricted$"):
        await kit.services.projects.create(
            ProjectsPost(name="q", config={"features.profiles": "false", "restricted": "true"})
        )


async def test_limits_of_one_project_are_nothing_to_another(kit):
    await change(kit, limits__instances="1", limits__memory="512MiB")
    await kit.services.profiles.update("default", "default", ProfilePut(config={"limits.memory": "2GiB"}))
    results = await asyncio.gather(change(kit, limits__cpu="1"), return_exceptions=True)
    assert isinstance(results[0], ApiError)
    assert 'has no "limits.cpu" config' in str(results[0])


async def test_a_pool_that_a_project_may_not_use_is_not_listed(kit):
    await kit.sql(
        "INSERT INTO projects_config (project_id, key, value) SELECT id, 'limits.disk.pool.local', '0'"
        " FROM projects WHERE name = 'p' ORDER BY id"
    )
    assert [pool.name for pool in kit.services.storage.list("p")] == []
    assert [pool.name for pool in kit.services.storage.list("default")] == ["local"]


async def test_the_state_of_a_project_counts_configured_sizes(kit):
    await kit.services.profiles.update(
        "p", "default", ProfilePut(config={}, devices={"root": {**ROOT["root"], "size": "10MiB"}})
    )
    await kit.sql(
        "INSERT INTO projects_config (project_id, key, value) SELECT id, 'limits.disk.pool.local', '1GiB'"
        " FROM projects WHERE name = 'p' ORDER BY id",
        "INSERT INTO storage_volumes (id, storage_pool_id, node_id, project_id, type, name, description, content_type,"
        " creation_date) SELECT 5, 9, 1, id, 2, 'v', '', 0, '2026-01-01T00:00:00Z' FROM projects WHERE name = 'p' ORDER BY id",
        "INSERT INTO storage_volumes_config (storage_volume_id, key, value) VALUES (5, 'size', '20MiB')",
    )
    resources = kit.services.projects.state("p").resources
    assert (resources["disk"].limit, resources["disk"].usage) == (-1, 30 << 20)
    assert (resources["disk.local"].limit, resources["disk.local"].usage) == (1 << 30, 30 << 20)
