"""Projects with the texts that a real Incus 6.0.4 gave."""

from __future__ import annotations

import pytest
from service_kit import running_services

from incus_actors.errors import BadRequestError, ForbiddenError, MemberError, NotFoundError
from incus_actors.model.resources import NamePost, PoolsPost, ProfilesPost, ProjectPut, ProjectsPost


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


async def test_a_new_project_has_features_and_a_profile(kit):
    projects = kit.services.projects
    await projects.create(ProjectsPost(name="pr1", description="one"))
    shown = projects.get("pr1")
    assert shown.config == dict.fromkeys(
        ["features.images", "features.profiles", "features.storage.buckets", "features.storage.volumes"], "true"
    )
    assert shown.used_by == ["/1.0/profiles/default?project=pr1"]
    assert [project.name for project in projects.list()] == ["default", "pr1"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "No name provided"),
        ("a/b", "Project names may not contain slashes"),
        ("a b", "Project names may not contain spaces"),
        ("a_b", "Project names may not contain underscores"),
        ("a'b", "Project names may not contain quotes"),
        ("*", "Reserved project name"),
        ("..", 'Invalid project name ".."'),
    ],
)
async def test_names(kit, name, text):
    with pytest.raises(BadRequestError) as caught:
        await kit.services.projects.create(ProjectsPost(name=name))
    assert str(caught.value) == text


async def test_texts(kit):
    projects = kit.services.projects
    await projects.create(ProjectsPost(name="pr1"))
    with pytest.raises(MemberError) as caught:
        await projects.create(ProjectsPost(name="pr1"))
    assert str(caught.value) == (
        'Failed creating project "pr1": Failed adding database record: Failed to create "projects" entry:'
        " UNIQUE constraint failed: projects.name"
    )
    with pytest.raises(BadRequestError, match=r'^Invalid project configuration key "foo"$'):
        await projects.create(ProjectsPost(name="pr2", config={"foo": "1"}))
    with pytest.raises(NotFoundError, match=r"^Project not found$"):
        projects.get("nope")
    with pytest.raises(NotFoundError, match=r'^Fetch project "nope": Project not found$'):
        await projects.delete("nope")
    with pytest.raises(ForbiddenError, match=r"^The 'default' project cannot be deleted$"):
        await projects.delete("default")
    with pytest.raises(ForbiddenError, match=r"^The 'default' project cannot be renamed$"):
        projects.check_rename("default", NamePost(name="x"))
    with pytest.raises(BadRequestError, match=r"^You can't change the features of the default project$"):
        await projects.update("default", ProjectPut(config={"features.images": "false"}))


async def test_only_empty_projects_go_or_change_their_name(kit):
    projects = kit.services.projects
    await projects.create(ProjectsPost(name="pr1"))
    await kit.services.profiles.create("pr1", ProfilesPost(name="mine"))
    with pytest.raises(MemberError, match=r"^Only empty projects can be removed\.$"):
        await projects.delete("pr1")
    with pytest.raises(BadRequestError, match=r"^Only empty projects can be renamed$"):
        await projects.rename("pr1", NamePost(name="pr2"))
    with pytest.raises(BadRequestError, match=r'"features.images" cannot be disabled on non-empty projects$'):
        await projects.update("pr1", ProjectPut(config={"features.images": "false"}), patch=True)
    await kit.services.profiles.delete("pr1", "mine")
    with pytest.raises(BadRequestError, match=r'^A project named "default" already exists$'):
        await projects.rename("pr1", NamePost(name="default"))
    await projects.rename("pr1", NamePost(name="pr2"))
    await projects.delete("pr2")
    assert kit.database.scalar("SELECT COUNT(*) FROM profiles") == 1


async def test_force_takes_profiles_along_but_never_images(kit):
    projects = kit.services.projects
    await projects.create(ProjectsPost(name="pr1"))
    await kit.services.profiles.create("pr1", ProfilesPost(name="mine"))
    await projects.create(ProjectsPost(name="pr2"))
    await kit.sql(
        "INSERT INTO images (fingerprint, filename, size, architecture, upload_date, project_id)"
        " VALUES ('ab', 'f', 1, 2, '', (SELECT id FROM projects WHERE name = 'pr2'))"
    )
    await projects.delete("pr1", force=True)
    with pytest.raises(MemberError, match="Only empty"):
        await projects.delete("pr2", force=True)
    assert projects.get("pr2").used_by == ["/1.0/images/ab?project=pr2", "/1.0/profiles/default?project=pr2"]


async def test_features_can_go_and_come_back_while_empty(kit):
    projects = kit.services.projects
    await projects.create(ProjectsPost(name="pr1"))
    await projects.update("pr1", ProjectPut(config={"features.images": "false"}, description="n"))
    assert projects.get("pr1").config == {"features.images": "false"}
    assert projects.get("pr1").used_by == []
    await projects.update("pr1", ProjectPut(config={"features.profiles": "true"}), patch=True)
    assert projects.get("pr1").used_by == ["/1.0/profiles/default?project=pr1"]
    assert projects.get("pr1").description == "n"


async def test_state_counts_what_is_there_against_limits(kit):
    projects = kit.services.projects
    await projects.update("default", ProjectPut(config={"limits.containers": "5", "limits.memory": "1GiB"}), patch=True)
    await kit.add_instance("c1")
    await kit.sql("INSERT INTO instances_config (instance_id, key, value) VALUES (1, 'limits.cpu', '0-2,5')")
    found = projects.state("default").resources
    assert (found["containers"].limit, found["containers"].usage) == (5, 1)
    assert (found["memory"].limit, found["memory"].usage) == (1 << 30, 0)
    assert (found["cpu"].limit, found["cpu"].usage) == (-1, 4)
    with pytest.raises(NotFoundError, match=r"^Fetch project database object: Project not found$"):
        projects.state("nope")


async def test_limits_name_pools_and_groups_that_exist(kit):
    projects = kit.services.projects
    for config, text in (
        ({"limits.disk.pool.p": "1GB"}, 'Invalid project configuration key "limits.disk.pool.p"'),
        (
            {"restricted.cluster.groups": "default,g1"},
            'Invalid project configuration key "restricted.cluster.groups" value: Cluster group "g1" doesn\'t exist',
        ),
    ):
        with pytest.raises(BadRequestError) as caught:
            await projects.create(ProjectsPost(name="pr1", config=config))
        assert str(caught.value) == text
    await kit.services.storage.create(PoolsPost(name="p", driver="dir"))
    await projects.create(
        ProjectsPost(name="pr1", config={"limits.disk.pool.p": "1GB", "restricted.cluster.groups": "default"})
    )
