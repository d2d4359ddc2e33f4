"""Disk devices: what a real Incus 6.0.4 says to the same options."""

import pytest

from incus_actors.domain.disk_devices import check_disk, inside_path, is_required
from incus_actors.errors import BadRequestError

ROOT = {"type": "disk", "path": "/", "pool": "p"}
PATH = {"type": "disk", "path": "/x", "source": "/tmp"}
VOLUME = {"type": "disk", "path": "/x", "source": "v", "pool": "p"}
UINT = 'Invalid value for uint32 "x": strconv.ParseUint: parsing "x": invalid syntax'
PLACE = 'Disk entry is missing the required "source" or "path" property'


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ({**PATH, "nosuch": "1"}, 'Invalid device option "nosuch"'),
        (
            {**PATH, "readonly": "maybe"},
            'Invalid value for device option "readonly": Invalid value for a boolean "maybe"',
        ),
        (
            {**PATH, "optional": "maybe"},
            'Invalid value for device option "optional": Invalid value for a boolean "maybe"',
        ),
        ({**PATH, "boot.priority": "x"}, f'Invalid value for device option "boot.priority": {UINT}'),
        (
            {**PATH, "io.cache": "foo"},
            'Invalid value for device option "io.cache": Invalid value "foo" (not one of [none metadata writeback unsafe])',
        ),
        ({**PATH, "limits.read": "abc"}, "Invalid value: abc"),
        ({**PATH, "propagation": "foo"}, 'Invalid propagation mode "foo"'),
        (
            {**PATH, "optional": "true", "required": "true"},
            'Cannot use both "required" and deprecated "optional" properties at the same time',
        ),
        ({**ROOT, "source": "/tmp"}, 'Root disk entry may not have a "source" property set'),
        ({**ROOT, "recursive": "true"}, "The recursive option is only supported for additional bind-mounted paths"),
        ({"type": "disk", "path": "/"}, 'Root disk entry must have a "pool" property set'),
        ({"type": "disk", "path": "/x", "pool": "p"}, PLACE),
        ({**PATH, "path": "/x/.."}, 'Invalid disk path "/x/..": only a root disk can be at "/"'),
        ({**PATH, "size": "10MiB"}, "Only the root disk may have a size quota"),
        ({**VOLUME, "size": "10MiB"}, "Only the root disk may have a size quota"),
        ({**PATH, "size.state": "10MiB"}, "Only the root disk may have a migration size quota"),
        ({**VOLUME, "source": "/tmp"}, "Storage volumes cannot be specified as absolute paths"),
        (
            {**VOLUME, "shift": "true"},
            (
                'The "shift" property cannot be used with custom storage volumes (set "security.shifted=true" on the volume'
                " instead)"
            ),
        ),
        ({**PATH, "ceph.user_name": "u"}, 'Invalid options ceph.cluster_name/ceph.user_name for source "/tmp"'),
        ({**PATH, "source": "rel"}, "Source path must be absolute for local sources"),
        ({**PATH, "source": "ceph:a/b"}, "Disks on Ceph are not supported"),
        (
            {**PATH, "source": "cloud-init:config"},
            "disks with source=cloud-init:config are only supported by virtual machines",
        ),
    ],
)
def test_disks_that_neither_instances_nor_profiles_have(device, text):
    for container in (True, False):
        with pytest.raises(BadRequestError) as refused:
            check_disk(device, container=container)
        assert str(refused.value) == text


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ({**PATH, "io.cache": "none"}, "IO cache configuration cannot be applied to containers"),
        ({**ROOT, "io.bus": "nvme"}, "IO bus configuration cannot be applied to containers"),
        ({"type": "disk", "source": "/tmp"}, PLACE),
    ],
)
def test_disks_that_a_profile_has_but_no_container(device, text):
    check_disk(device, container=False)
    with pytest.raises(BadRequestError) as refused:
        check_disk(device, container=True)
    assert str(refused.value) == text


def test_disks_that_are_fine():
    for device in (
        ROOT,
        PATH,
        VOLUME,
        {**ROOT, "size": "1GiB", "size.state": "1GiB", "boot.priority": "5", "limits.max": "10MB"},
        {**PATH, "limits.read": "100iops", "propagation": "rslave", "raw.mount.options": "x", "shift": "true"},
        {**PATH, "path": "srv/x", "optional": "true"},
    ):
        check_disk(device, container=True)
        check_disk(device, container=False)
    check_disk({**PATH, "user.a": "b"}, container=True)


def test_required_has_an_older_name():
    assert is_required({})
    assert is_required({"required": "true"})
    assert is_required({"optional": "no"})
    assert not is_required({"required": "0"})
    assert not is_required({"optional": "1"})


@pytest.mark.parametrize(
    ("path", "inside"),
    [("/a/b", "/a/b"), ("a/b", "/a/b"), ("/../a", "/a"), ("../a/", "/a"), ("//", "/"), ("/a/../b", "/b")],
)
def test_the_place_inside_a_container(path, inside):
    assert inside_path(path) == inside
