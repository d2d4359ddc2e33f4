"""Profiles under own settings, devices, volatile keys."""

from __future__ import annotations

import json

import pytest

from incus_actors.domain.instances import (
    ProfileLayer,
    check_expanded_devices,
    check_own_devices,
    check_volatile_kept,
    expand_config,
    expand_devices,
    first_volatile,
    idmap_json,
    root_disk,
    root_giver,
)
from incus_actors.errors import BadRequestError, MemberError

ROOT = {"type": "disk", "path": "/", "pool": "local"}


def test_later_profiles_win_and_the_instance_wins_over_all():
    layers = [
        ProfileLayer("a", {"k": "1", "a": "1"}, {"root": ROOT, "n": {"type": "nic", "x": "1"}}),
        ProfileLayer("b", {"k": "2"}, {"n": {"type": "nic", "y": "2"}}),
    ]
    assert expand_config(layers, {"own": "3"}) == {"a": "1", "k": "2", "own": "3"}
    assert expand_config(layers, {"k": "3"})["k"] == "3"
    expanded = expand_devices(layers, {"root": {**ROOT, "size": "1GiB"}})
    assert expanded == {"n": {"type": "nic", "y": "2"}, "root": {**ROOT, "size": "1GiB"}}
    assert list(expanded) == ["n", "root"]
    expanded["n"]["y"] = "changed"
    assert layers[1].devices["n"]["y"] == "2"


def test_the_root_disk_is_the_one_at_slash_without_a_source():
    assert root_disk({"x": {"type": "disk", "path": "/", "source": "/a"}, "r": ROOT})[0] == "r"
    with pytest.raises(BadRequestError, match=r"^No root device could be found$"):
        root_disk({"n": {"type": "nic"}})


def test_the_root_disk_is_given_by_the_last_profile_or_by_the_instance():
    layers = [ProfileLayer("a", {}, {"root": ROOT}), ProfileLayer("b", {}, {"x": ROOT}), ProfileLayer("c", {}, {})]
    assert root_giver(layers, {}) == "b"
    assert root_giver(layers[:1], {"root": {"type": "disk", "path": "/", "source": "/a"}}) == "a"
    assert root_giver(layers, {"mine": ROOT}) is None
    assert root_giver(layers[2:], {}) is None


@pytest.mark.parametrize(
    ("devices", "text"),
    [
        ({"d": {"type": "disk"}}, '"d": Disk entry is missing the required "source" or "path" property'),
        ({"d": {"type": "disk", "path": "/x"}}, '"d": Disk entry is missing the required "source" or "path" property'),
        ({"d": {**ROOT, "foo": "x"}}, '"d": Invalid device option "foo"'),
        ({"root": {"type": "disk", "path": "/"}}, '"root": Root disk entry must have a "pool" property set'),
        ({"root": {**ROOT, "size": "foo"}}, '"root": Invalid value for device option "size": Invalid value: foo'),
        (
            {"d": {"type": "disk", "source": "/a", "path": "/b", "propagation": "foo"}},
            '"d": Invalid propagation mode "foo"',
        ),
        ({"a": ROOT, "b": ROOT}, '"b": More than one disk device uses the same path "/"'),
        ({"d": {"type": "foo"}}, '"d": Failed loading device "d": Unsupported device type'),
        ({"d": {}}, '"d": Failed loading device "d": Missing device type in config'),
        ({"d": {"type": "none", "foo": "1"}}, '"d": Invalid device option "foo"'),
        *(
            ({"d": {"type": kind}}, f'"d": Unsupported device type "{kind}"')
            for kind in ("gpu", "infiniband", "pci", "tpm", "unix-hotplug", "usb")
        ),
        ({"ro ot": {"type": "none"}}, '"ro ot": Name can only contain alphanumeric, forward slash, hyphen, colon'),
        ({"../x": {"type": "none"}}, '"../x": Name can only contain'),
    ],
)
def test_devices_that_no_instance_can_have(devices, text):
    with pytest.raises(BadRequestError) as refused:
        check_expanded_devices(devices)
    assert str(refused.value).startswith(f"Device validation failed for {text}")


def test_devices_that_are_fine():
    check_expanded_devices(
        {
            "root": ROOT,
            "d": {"type": "disk", "source": "/a", "path": "/b", "propagation": "rslave", "user.x": "1"},
            "a/b:c_d.e": {"type": "none"},
        }
    )
    check_own_devices({"n": {"type": "none"}})
    with pytest.raises(BadRequestError, match='Invalid device type ""'):
        check_own_devices({"n": {}})


def test_volatile_keys_of_a_new_instance():
    idmap = idmap_json([(True, False, 1000000, 0, 65536), (False, True, 1000000, 0, 65536)])
    assert json.loads(idmap)[0] == {"Isuid": True, "Isgid": False, "Hostid": 1000000, "Nsid": 0, "Maprange": 65536}
    keys = first_volatile(fingerprint="f", uuid="u", instance_id="i", idmap=idmap, start=False)
    assert keys["volatile.apply_template"] == "create"
    assert keys["volatile.uuid"] == keys["volatile.uuid.generation"] == "u"
    started = first_volatile(fingerprint="f", uuid="u", instance_id="i", idmap=None, start=True)
    assert "volatile.apply_template" not in started
    assert started["volatile.idmap.next"] == "[]"


def test_users_keep_the_idmap_keys():
    old = {"volatile.idmap.next": "[]", "user.x": "1"}
    check_volatile_kept(old, {"volatile.idmap.next": "[]"})
    with pytest.raises(MemberError, match=r"^Volatile idmap keys can't be deleted by the user$"):
        check_volatile_kept(old, {"user.x": "1"})
