"""Keys and values are refused with the words of a real Incus 6.0.4 (each expectation was asked of one)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from incus_actors.model import config_keys as keys

CONTRACT = Path(__file__).parents[3] / "shared" / "contract" / "configuration.json"


@pytest.mark.may_skip
@pytest.mark.skipif(not CONTRACT.exists(), reason="the contract is not on this machine")
def test_data_is_what_the_script_makes_of_the_contract():
    made = subprocess.run(
        [sys.executable, "tools/make_config_keys.py", str(CONTRACT)], check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(made) == json.loads(Path(keys.__file__).with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("foo.bar", "1", "unknown key"),
        ("foo.bar", "", "unknown key"),
        ("core.trust_passwords", "x", "unknown key"),
        ("cluster.max_voters", "4", "Value must be an odd number equal to or higher than 3"),
        ("cluster.max_voters", "-1", "Value must be an odd number equal to or higher than 3"),
        ("cluster.max_voters", "zz", "invalid integer"),
        ("core.shutdown_timeout", " 5", "invalid integer"),
        ("images.auto_update_interval", "0x10", "invalid integer"),
        ("images.auto_update_interval", "9" * 30, "invalid integer"),
        ("cluster.offline_threshold", "0", "Value must be greater than '0'"),
        ("cluster.max_standby", "6", "Value must be between 0 and 5"),
        ("cluster.images_minimal_replica", "0", "Invalid value for image replica count"),
        ("cluster.rebalance.threshold", "-1", "Value must be between 10 and 100"),
        ("images.auto_update_cached", "maybe", "invalid boolean"),
        ("cluster.join_token_expiry", "0", "Invalid expiry expression"),
        ("cluster.join_token_expiry", "1x", "Invalid expiry expression"),
        ("images.compression_algorithm", "bad", 'Compression algorithm "bad" isn\'t currently supported'),
        ("core.https_address", "foo bar", 'Couldn\'t resolve "foo bar"'),
        ("cluster.https_address", "0.0.0.0:8443", "Wildcard addresses aren't allowed"),
        ("core.bgp_asn", "70000000000", "Value isn't within valid range. Must be between 0 and 4294967294"),
        ("core.bgp_routerid", "zz zz", 'Not an IPv4 address "zz zz"'),
        ("acme.challenge", "zz", 'Invalid value "zz" (not one of [DNS-01 HTTP-01])'),
        ("loki.types", "zz", 'Item "zz": Invalid value "zz" (not one of [lifecycle logging network-acl])'),
    ],
)
def test_wrong_server_values(key, value, reason):
    with pytest.raises(keys.ConfigError) as caught:
        keys.canonical_server_values({key: value})
    assert str(caught.value) == f"cannot set '{key}' to '{value}': {reason}"


def test_only_the_first_of_several_errors_is_told_and_the_rest_counted():
    with pytest.raises(keys.ConfigError, match=r"^cannot set 'cluster.max_voters' .* \(and 1 more errors\)$"):
        keys.canonical_server_values({"foo.a": "1", "cluster.max_voters": "4"})


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [
        ("images.auto_update_cached", "Off", "false"),
        ("images.auto_update_cached", "TRUE", ""),  # the default is not stored
        ("cluster.max_voters", "03", "03"),
        ("cluster.max_voters", "3", ""),
        ("cluster.join_token_expiry", "1M 2H", "1M 2H"),
        ("images.compression_algorithm", "gzip -9", "gzip -9"),
        ("core.https_address", ":28444", ":28444"),
        ("user.", "1", "1"),
        ("cluster.images_minimal_replica", "-1", "-1"),
    ],
)
def test_values_as_they_are_stored(key, value, stored):
    assert keys.canonical_server_values({key: value}) == {key: stored}


def test_scope_and_defaults():
    assert keys.is_local("core.https_address")
    assert not keys.is_local("cluster.max_voters")
    assert not keys.is_local("user.zz")
    assert keys.server_value({}, "cluster.offline_threshold") == "20"
    assert keys.server_value({"cluster.offline_threshold": "30"}, "cluster.offline_threshold") == "30"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("foo.bar", "1", "Unknown configuration key: foo.bar"),
        ("limits.memory", "zz", "Invalid value: zz"),
        ("limits.memory", "1KB", "Invalid value: 1KB"),
        ("limits.memory", "1.5GB", "Invalid value: 1.5GB"),
        ("limits.memory", "0", "Memory limit can't be 0"),
        ("limits.cpu", "a", "Invalid CPU limit syntax"),
        ("limits.cpu", "0-", "Invalid CPU limit syntax"),
        ("limits.cpu", "0", "Invalid cpuset value: 0"),
        ("limits.cpu.allowance", "10", "Invalid allowance: 10"),
        ("limits.cpu.priority", "11", 'Invalid value for a limit "11". Must be between 0 and 10'),
        ("boot.autostart", "maybe", 'Invalid value for a boolean "maybe"'),
        ("boot.autostart.priority", "x", 'Invalid value for an integer "x"'),
        ("limits.processes", "1.5", 'Invalid value for an integer "1.5"'),
        (
            "security.idmap.base",
            "-1",
            'Invalid value for uint32 "-1": strconv.ParseUint: parsing "-1": invalid syntax',
        ),
        ("raw.lxc", "zz zz", "Invalid raw.lxc line: zz zz"),
        ("environment.FOO", "x\ny", "Environment variables cannot contain line breaks"),
        ("limits.memory.swap", "x", '"x" isn\'t a valid value'),
        ("oci.entrypoint", "/x", "Unknown configuration key: oci.entrypoint"),
        (
            "cluster.evacuate",
            "foo",
            'Invalid value "foo" (not one of [auto migrate live-migrate stop stateful-stop force-stop])',
        ),
        (
            "snapshots.schedule",
            "x",
            "Schedule must be of the form: <minute> <hour> <day-of-month> <month> <day-of-week>",
        ),
        ("volatile.foo", "1", "Volatile keys can only be set on instances"),
        ("image.os", "x", "Image keys can only be set on instances"),
    ],
)
def test_wrong_profile_values(key, value, text):
    with pytest.raises(keys.ConfigError) as caught:
        keys.validate_instance_config({key: value}, profile=True)
    assert str(caught.value) == text


def test_right_profile_values():
    keys.validate_instance_config(
        {
            "limits.cpu": "1,3",
            "limits.memory": "10%",
            "limits.cpu.allowance": "10ms/100ms",
            "limits.memory.swap": "false",
            "limits.kernel.nofile": "1:2",
            "limits.hugepages.64KB": "1MB",
            "linux.sysctl.net.x": "1",
            "raw.lxc": "lxc.foo=1\n# comment\n",
            "cloud-init.network-config": "version: 1",
            "snapshots.schedule": "@daily",
            "user.x": "",
        },
        profile=True,
    )


def test_instances_may_have_image_and_known_volatile_keys():
    keys.validate_instance_config(
        {"image.os": "x", "volatile.eth0.hwaddr": "x", "volatile.last_state.power": "RUNNING"}
    )
    with pytest.raises(keys.ConfigError, match=r"^Unknown configuration key: volatile\.nonsense$"):
        keys.validate_instance_config({"volatile.nonsense": "1"})


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("security.secureboot", "true", "Unknown configuration key: security.secureboot"),
        ("smbios11.x", "1", "Unknown configuration key: smbios11.x"),
        ("volatile.vsock_id", "3", "Unknown configuration key: volatile.vsock_id"),
        ("volatile.cloud_init.instance-id", "x", "Unknown configuration key: volatile.cloud_init.instance-id"),
        ("volatile.cloud-init.instance-id", "x", "Invalid UUID"),
        ("volatile.uuid", "zz", "Invalid UUID"),
        ("volatile.actors.phase", "x", "Unknown configuration key: volatile.actors.phase"),
        ("raw.idmap", "x", "Invalid ID map line: x"),
    ],
)
def test_what_a_container_cannot_have(key, value, text):
    with pytest.raises(keys.ConfigError) as caught:
        keys.validate_instance_config({key: value})
    assert str(caught.value) == text


def test_keys_of_one_type_of_instance_fit_any_profile_and_that_type():
    keys.validate_instance_config({"security.secureboot": "true", "raw.idmap": "x"}, profile=True)
    keys.validate_instance_config({"security.secureboot": "true"}, instance_type="virtual-machine")
    with pytest.raises(keys.ConfigError, match="Unknown"):
        keys.validate_instance_config({"raw.lxc": "a=b"}, instance_type="virtual-machine")
    keys.validate_instance_config({"raw.idmap": "both 1 2\ngid 3-4 5-6", "raw.lxc": "a=b"})


def test_projects_pools_and_members():
    keys.validate_project_config({"features.images": "true", "limits.disk.pool.p": "1GB", "user.x": "y"})
    with pytest.raises(keys.ConfigError, match=r'^Invalid project configuration key "foo"$'):
        keys.validate_project_config({"foo": "1"})
    with pytest.raises(keys.ConfigError, match=r'^Invalid project configuration key "features.images" value: Invalid'):
        keys.validate_project_config({"features.images": "maybe"})
    keys.validate_pool_config({"source": "", "volume.snapshots.expiry": "1d", "user.a": "b"}, "dir")
    keys.validate_pool_config({"zfs.pool_name": "x", "size": "5GiB"}, "zfs")
    for key, driver in (("zfs.pool_name", "dir"), ("size", "dir"), ("btrfs.mount_options", "zfs"), ("nope", "btrfs")):
        with pytest.raises(keys.ConfigError, match=rf'^Invalid option "{key}"$'):
            keys.validate_pool_config({key: "1GiB"}, driver)
    with pytest.raises(keys.ConfigError, match=r'^Invalid value for option "rsync.compression": Invalid value for a b'):
        keys.validate_pool_config({"rsync.compression": "maybe"}, "dir")
    with pytest.raises(keys.ConfigError, match=r'^Invalid cluster configuration key "scheduler.instance" value$'):
        keys.validate_member_config({"scheduler.instance": "x"})


@pytest.mark.parametrize(
    ("config", "driver", "content", "problem"),
    [
        ({"foo": "1"}, "dir", "filesystem", 'option for volume "v" option "foo"'),
        ({"size": "zz"}, "dir", "block", 'value for volume "v" option "size": Invalid value: zz'),
        ({"security.shifted": "true"}, "btrfs", "block", 'option for volume "v" option "security.shifted"'),
        ({"security.shared": "true"}, "btrfs", "filesystem", 'option for volume "v" option "security.shared"'),
        ({"block.filesystem": "ext4"}, "btrfs", "filesystem", 'option for volume "v" option "block.filesystem"'),
        ({"block.filesystem": "ext4"}, "lvm", "block", 'option for volume "v" option "block.filesystem"'),
        ({"block.filesystem": "vfat"}, "lvm", "filesystem", 'value for volume "v" option "block.filesystem": '),
        ({"snapshots.schedule": "@daily"}, "dir", "iso", 'option for volume "v" option "snapshots.schedule"'),
        ({"block.filesystem": "ext4", "size": "1GiB", "user.x": "y"}, "lvm", "filesystem", None),
        ({"security.shared": "true", "snapshots.expiry": "1d"}, "zfs", "block", None),
    ],
)
def test_volumes_have_the_keys_of_their_content_and_driver(config, driver, content, problem):
    if problem is None:
        keys.validate_volume_config("v", config, driver, content)
        return
    with pytest.raises(keys.ConfigError) as caught:
        keys.validate_volume_config("v", config, driver, content)
    assert str(caught.value).startswith(f"Invalid {problem}")


def test_patch_merges_and_empty_means_unset():
    assert keys.merged({"a": "1", "b": "2"}, {"b": "", "c": "3"}.items()) == {"a": "1", "c": "3"}
    assert keys.without_empty(None) == {}
