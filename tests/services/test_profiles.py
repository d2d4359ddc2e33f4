"""Profiles with the texts that a real Incus 6.0.4 gave."""

from __future__ import annotations

import pytest
from service_kit import Seen, running_services

from incus_actors.errors import BadRequestError, ForbiddenError, MemberError, NotFoundError, PreconditionFailedError
from incus_actors.model.resources import NamePost, NetworksPost, ProfilePut, ProfilesPost, ProjectsPost
from incus_actors.services.profiles import editable


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


async def test_life_of_a_profile(kit):
    profiles = kit.services.profiles
    await profiles.create("default", ProfilesPost(name="p2", config={"limits.memory": "128MB", "user.a": ""}))
    await profiles.update("default", "p2", ProfilePut(config={"user.y": "2", "user.z": ""}))
    assert profiles.get("default", "p2").config == {"user.y": "2"}
    await profiles.update("default", "p2", ProfilePut(config={"limits.cpu": "2"}), patch=True)
    await profiles.update("default", "p2", ProfilePut(description="new"), patch=True)
    await profiles.update("default", "p2", ProfilePut(devices={"e": {"type": "none"}}), patch=True)
    await profiles.update("default", "p2", ProfilePut(devices={"f": {"type": "none"}}), patch=True)
    shown = profiles.get("default", "p2")
    assert shown.config == {"limits.cpu": "2", "user.y": "2"}
    assert shown.devices == {"e": {"type": "none"}, "f": {"type": "none"}}
    assert shown.description == "new"
    await profiles.rename("default", "p2", NamePost(name="pp2"))
    assert [profile.name for profile in profiles.list("default")] == ["default", "pp2"]
    assert profiles.get("default", "pp2").devices == shown.devices
    await profiles.delete("default", "pp2")
    with pytest.raises(NotFoundError, match=r"^Fetch profile: Profile not found$"):
        profiles.get("default", "pp2")


@pytest.mark.parametrize(
    ("post", "text"),
    [
        (ProfilesPost(), "No name provided"),
        (ProfilesPost(name="a/b"), "Profile names may not contain slashes"),
        (ProfilesPost(name=".."), 'Invalid profile name ".."'),
        (ProfilesPost(name="p", config={"foo.bar": "1"}), "Unknown configuration key: foo.bar"),
        (ProfilesPost(name="p", config={"volatile.x": "1"}), "Volatile keys can only be set on instances"),
        (
            ProfilesPost(name="p", devices={"eth0": {"type": "foo"}}),
            'Device validation failed for "eth0": Failed loading device "eth0": Unsupported device type',
        ),
        (
            ProfilesPost(name="p", devices={"g": {"type": "gpu"}}),
            'Device validation failed for "g": Unsupported device type "gpu"',
        ),
        (
            ProfilesPost(name="p", devices={"eth0": {"type": "nic"}}),
            'Device validation failed for "eth0": Failed loading device "eth0": Unsupported device type',
        ),
        (
            ProfilesPost(name="p", devices={"eth0": {}}),
            'Device validation failed for "eth0": Failed loading device "eth0": Missing device type in config',
        ),
        (
            ProfilesPost(name="p", devices={"eth0": {"type": "nic", "network": "nope"}}),
            (
                'Device validation failed for "eth0": Failed loading device "eth0": '
                'Failed to load network "nope" for project "default": Network not found'
            ),
        ),
        *(
            (ProfilesPost(name="p", devices={"d": device}), f'Device validation failed for "d": {text}')
            for device, text in (
                ({"type": "nic", "nictype": "bridged"}, 'Invalid value for device option "parent": Required value'),
                ({"type": "nic", "nictype": "p2p", "parent": "x"}, 'Invalid device option "parent"'),
                ({"type": "nic", "nictype": "p2p", "foo": "1"}, 'Invalid device option "foo"'),
                (
                    {"type": "nic", "nictype": "p2p", "name": "a/b"},
                    'Invalid value for device option "name": Network interface contains invalid characters',
                ),
                (
                    {"type": "unix-char"},
                    'Unix device entry is missing the required "source" or "path" property',
                ),
                ({"type": "unix-char", "path": "/dev/null", "foo": "1"}, 'Invalid device option "foo"'),
                ({"type": "none", "foo": "1"}, 'Invalid device option "foo"'),
            )
        ),
        (
            ProfilesPost(name="p", devices={"root": {"type": "disk", "path": "/"}}),
            'Device validation failed for "root": Root disk entry must have a "pool" property set',
        ),
        (
            ProfilesPost(name="p", devices={"d": {"type": "disk", "path": "/m", "source": "/t", "propagation": "x"}}),
            'Device validation failed for "d": Invalid propagation mode "x"',
        ),
        (
            ProfilesPost(name="p", devices={"d": {"type": "disk", "path": "/m", "source": "/t", "foo": "b"}}),
            'Device validation failed for "d": Invalid device option "foo"',
        ),
        (
            ProfilesPost(name="p", devices={"d": {"type": "disk", "path": "/m", "source": "/t", "size": "1GiB"}}),
            'Device validation failed for "d": Only the root disk may have a size quota',
        ),
        (
            ProfilesPost(name="p", devices={name: {"type": "disk", "path": "/", "pool": "p"} for name in ("a", "b")}),
            'Device validation failed for "b": More than one disk device uses the same path "/"',
        ),
    ],
)
async def test_what_a_profile_cannot_be(kit, post, text):
    with pytest.raises(BadRequestError) as caught:
        await kit.services.profiles.create("default", post)
    assert str(caught.value) == text
    assert len(kit.services.profiles.list("default")) == 1


async def test_nics_of_profiles_are_on_networks_that_take_them(kit):
    create = kit.services.network_changes.create
    await create(
        "default", NetworksPost(name="br9", config={"ipv4.address": "10.9.0.1/24", "ipv6.address": "none"}), None
    )
    nic = {"type": "nic", "network": "br9"}
    for options, text in (
        ({"mtu": "1400"}, 'Cannot use "mtu" property in conjunction with "network" property'),
        ({"ipv4.address": "10.8.0.1"}, 'Device IP address "10.8.0.1" not within network "br9" subnet'),
    ):
        with pytest.raises(BadRequestError) as caught:
            await kit.services.profiles.create("default", ProfilesPost(name="p", devices={"d": {**nic, **options}}))
        assert str(caught.value) == f'Device validation failed for "d": {text}'
    await kit.services.profiles.create(
        "default", ProfilesPost(name="p", devices={"d": {**nic, "ipv4.address": "10.9.0.5"}})
    )


async def test_invalid_updates_are_500_as_in_incus_and_change_nothing(kit):
    with pytest.raises(MemberError, match=r"^Unknown configuration key: foo$"):
        await kit.services.profiles.update("default", "default", ProfilePut(config={"foo": "2"}))
    assert kit.services.profiles.get("default", "default").description == "Default Incus profile"


async def test_texts_of_missing_and_taken_names(kit):
    profiles = kit.services.profiles
    await profiles.create("default", ProfilesPost(name="p1"))
    with pytest.raises(MemberError, match=r'^Error inserting "p1" into database: The profile already exists$'):
        await profiles.create("default", ProfilesPost(name="p1"))
    with pytest.raises(NotFoundError, match=r'^Failed to retrieve profile "nope": Profile not found$'):
        await profiles.update("default", "nope", ProfilePut())
    with pytest.raises(NotFoundError, match=r'^Failed to retrieve profile="nope": Profile not found$'):
        await profiles.update("default", "nope", ProfilePut(), patch=True)
    with pytest.raises(MemberError, match=r'^Profile "nope" doesn\'t exist$'):
        await profiles.rename("default", "nope", NamePost(name="q"))
    with pytest.raises(MemberError, match=r'^Profile "p1" already exists$'):
        await profiles.rename("default", "p1", NamePost(name="p1"))
    with pytest.raises(ForbiddenError, match=r'^The "default" profile cannot be renamed$'):
        await profiles.rename("default", "default", NamePost(name="q"))
    with pytest.raises(ForbiddenError, match=r'^The "default" profile cannot be deleted$'):
        await profiles.delete("default", "default")
    with pytest.raises(NotFoundError, match=r'^Failed loading project "nope": Project not found$'):
        profiles.list("nope")


async def test_a_used_profile_says_by_whom_and_stays(kit):
    profiles = kit.services.profiles
    await profiles.create("default", ProfilesPost(name="web"))
    await kit.add_instance("c1", profile="web")
    assert profiles.get("default", "web").used_by == ["/1.0/instances/c1"]
    with pytest.raises(MemberError, match=r"^Profile is currently in use$"):
        await profiles.delete("default", "web")


async def test_the_root_disk_that_an_instance_has_from_a_profile_stays(kit):
    profiles = kit.services.profiles
    root = {"type": "disk", "path": "/", "pool": "p1"}
    await profiles.update("default", "default", ProfilePut(devices={"root": root}))
    await profiles.create("default", ProfilesPost(name="web", devices={"root": root}))
    await kit.add_instance("c1", profile="default")
    before = profiles.get("default", "default")
    for devices in ({}, {"root": {**root, "pool": "p2"}}):
        with pytest.raises(MemberError, match=r"^At least one instance relies on this profile's root disk device$"):
            await profiles.update("default", "default", ProfilePut(devices=devices))
    assert profiles.get("default", "default") == before
    await profiles.update("default", "default", ProfilePut(devices={"disk": {**root, "size": "1GiB"}}))
    await profiles.update("default", "web", ProfilePut())  # nobody uses it
    await profiles.update("default", "web", ProfilePut(devices={"root": root}))
    await kit.sql("INSERT INTO instances_profiles (instance_id, profile_id, apply_order) VALUES (1, 2, 1)")
    await profiles.update("default", "default", ProfilePut())  # "web" gives it now
    with pytest.raises(MemberError, match="relies"):
        await profiles.update("default", "web", ProfilePut())


async def test_projects_have_profiles_of_their_own_or_those_of_default(kit):
    profiles, projects = kit.services.profiles, kit.services.projects
    await projects.create(ProjectsPost(name="own"))
    await projects.create(ProjectsPost(name="shared", config={"features.profiles": "false"}))
    await profiles.create("shared", ProfilesPost(name="x"))
    await profiles.create("own", ProfilesPost(name="y"))
    assert [(p.project, p.name) for p in profiles.list("shared")] == [("default", "default"), ("default", "x")]
    assert [(p.project, p.name) for p in profiles.list("own")] == [("own", "default"), ("own", "y")]
    assert len(profiles.list(None)) == 4
    assert profiles.get("own", "default").description == "Default Incus profile for project own"


async def test_if_match(kit):
    profiles = kit.services.profiles
    seen = editable(profiles.get("default", "default"))
    await profiles.update("default", "default", ProfilePut(description="one"), expect=Seen(seen))
    with pytest.raises(PreconditionFailedError):
        await profiles.update("default", "default", ProfilePut(description="two"), expect=Seen(seen))
