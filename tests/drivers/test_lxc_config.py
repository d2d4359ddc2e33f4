"""The pure function from a specification to liblxc's configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from incus_actors.drivers.base import IdMapEntry, InstanceSpec
from incus_actors.drivers.limits import Machine
from incus_actors.drivers.lxc_config import (
    LxcMachine,
    container_group,
    host_interface,
    lxc_config,
    peer_interface,
    validate,
)
from incus_actors.errors import BadRequestError

V1 = {"cpu": 1, "cpuset": 1, "memory": 1, "devices": 1, "pids": 1}
V2 = dict.fromkeys(V1, 2)
MACHINE = Machine(memory_bytes=8 << 30, cpus=(0, 1, 2, 3), versions=V1)
FACTS = LxcMachine(
    machine=MACHINE,
    idmap=(IdMapEntry("both", 0, 1_000_000, 1_000_000_000),),
    idmapped_mounts=True,
    cgroup_parent="incus-actors-x",
    seccomp_file=Path("/d/instances/c1/seccomp"),
    post_stop_hook=Path("/d/instances/c1/post-stop"),
)
SPEC = InstanceSpec("c1", "default", Path("/d/instances/c1"), Path("/d/volume"), Path("/d/logs/c1"))


def config(spec: InstanceSpec = SPEC, facts: LxcMachine = FACTS) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in lxc_config(spec, facts):
        found.setdefault(key, []).append(value)
    return found


def test_an_ordinary_container() -> None:
    items = config()
    assert items["lxc.rootfs.path"] == ["/d/volume/rootfs"]
    assert items["lxc.uts.name"] == ["c1"]
    assert items["lxc.idmap"] == ["u 0 1000000 1000000000", "g 0 1000000 1000000000"]
    assert items["lxc.rootfs.options"] == ["idmap=container"]
    assert items["lxc.net.0.type"] == ["empty"]
    assert items["lxc.cgroup.dir.container"] == ["incus-actors-x/c-c1"]
    assert items["lxc.cgroup.devices.deny"] == ["a"]
    assert "lxc.cgroup.memory.limit_in_bytes" not in items
    assert "lxc.cap.drop" not in items
    assert [line.split()[1] for line in items["lxc.mount.entry"]] == ["dev/fuse", "dev/net/tun"]


def test_a_privileged_one() -> None:
    items = config(replace(SPEC, config={"security.privileged": "true"}))
    assert "lxc.idmap" not in items
    assert "lxc.rootfs.options" not in items
    assert "sys_module" in items["lxc.cap.drop"][0]
    assert items["lxc.mount.auto"] == ["proc:mixed sys:mixed cgroup:mixed:force"]


def test_never_unprivileged_without_a_map() -> None:
    with pytest.raises(BadRequestError, match="No id map"):
        lxc_config(SPEC, replace(FACTS, idmap=()))


def test_without_idmapped_mounts() -> None:
    items = config(facts=replace(FACTS, idmapped_mounts=False))
    assert "lxc.rootfs.options" not in items
    assert items["lxc.idmap"]


LIMITS = {
    "limits.memory": "25%",
    "limits.processes": "100",
    "limits.cpu": "1-2",
    "limits.cpu.allowance": "20ms/100ms",
    "limits.kernel.nofile": "4096",
}


def test_limits_version_1() -> None:
    items = config(replace(SPEC, config=LIMITS))
    assert items["lxc.cgroup.memory.limit_in_bytes"] == [str(2 << 30)]
    assert items["lxc.cgroup.pids.max"] == ["100"]
    assert items["lxc.cgroup.cpuset.cpus"] == ["1,2"]
    assert items["lxc.cgroup.cpu.cfs_quota_us"] == ["20000"]
    assert items["lxc.prlimit.nofile"] == ["4096"]


def test_limits_version_2() -> None:
    items = config(replace(SPEC, config=LIMITS), replace(FACTS, machine=replace(MACHINE, versions=V2)))
    assert items["lxc.cgroup2.memory.max"] == [str(2 << 30)]
    assert items["lxc.cgroup2.cpu.max"] == ["20000 100000"]
    assert items["lxc.cgroup2.devices.deny"] == ["a"]
    assert not [key for key in items if key.startswith("lxc.cgroup.") and not key.startswith("lxc.cgroup.dir")]


def test_environment_and_sysctl() -> None:
    items = config(replace(SPEC, config={"environment.A": "b=c", "linux.sysctl.net.ipv4.ip_forward": "1"}))
    assert items["lxc.environment"] == ["A=b=c"]
    assert items["lxc.sysctl.net.ipv4.ip_forward"] == ["1"]


def test_a_nic() -> None:
    nic = {"type": "nic", "nictype": "bridged", "parent": "br0", "mtu": "1400"}
    spec = replace(SPEC, devices={"eth0": nic}, config={"volatile.eth0.hwaddr": "10:66:6a:00:00:01"})
    items = config(spec)
    assert items["lxc.net.0.type"] == ["phys"]  # one end of a pair that is in the bridge already
    assert items["lxc.net.0.link"] == [peer_interface(host_interface(spec, "eth0"))]
    assert items["lxc.net.0.name"] == ["eth0"]
    assert items["lxc.net.0.hwaddr"] == ["10:66:6a:00:00:01"]
    assert items["lxc.net.0.mtu"] == ["1400"]
    assert len(host_interface(spec, "eth0")) <= 15
    named = replace(spec, config={"volatile.eth0.host_name": "veth1234"})
    assert host_interface(named, "eth0") == "veth1234"
    assert host_interface(replace(named, config={"volatile.eth0.host_name": "a/b"}), "eth0").startswith("veth")


def test_a_root_disk_may_be_read_only() -> None:
    root = {"type": "disk", "path": "/", "pool": "local", "readonly": "true"}
    assert config(replace(SPEC, devices={"root": root}))["lxc.rootfs.options"] == ["idmap=container,ro"]


def test_disks_are_no_matter_of_liblxc() -> None:
    disk = {"type": "disk", "source": "/srv/my data", "path": "/mnt/d", "readonly": "true"}
    root = {"type": "disk", "path": "/", "pool": "local"}
    volume = {"type": "disk", "source": "v1", "path": "/mnt/v", "pool": "local"}
    items = config(replace(SPEC, devices={"data": disk, "root": root, "volume": volume}))
    assert [line.split()[1] for line in items["lxc.mount.entry"]] == ["dev/fuse", "dev/net/tun"]


def test_nesting() -> None:
    assert len(config(replace(SPEC, config={"security.nesting": "true"}))["lxc.mount.entry"]) == 4


@pytest.mark.parametrize(
    "config_given",
    [
        {"raw.lxc": "lxc.cap.drop="},
        {"raw.idmap": "both 0 0"},
        {"raw.seccomp": "2"},
        {"security.syscalls.intercept.mknod": "true"},
        {"security.idmap.isolated": "true"},
        {"environment.X": "a\nlxc.cap.drop ="},
        {"environment.X": "a\0b"},
    ],
)
def test_config_that_is_refused(config_given: dict[str, str]) -> None:
    with pytest.raises(BadRequestError):
        validate(replace(SPEC, config=config_given))


@pytest.mark.parametrize(
    "device",
    [
        {"type": "gpu"},
        {"type": ""},
        {"type": "nic", "nictype": "sriov", "parent": "eth0"},
        {"type": "nic", "nictype": "bridged"},
        {"type": "nic", "nictype": "bridged", "parent": "a b"},
        {"type": "nic", "nictype": "bridged", "parent": "br0", "name": "x" * 16},
        {"type": "disk", "path": "/x", "source": "relative"},
        {"type": "disk", "path": "/x\ny", "source": "/x"},
        {"type": "disk", "path": "", "source": "/x"},
    ],
)
def test_devices_that_are_refused(device: dict[str, str]) -> None:
    with pytest.raises(BadRequestError):
        validate(replace(SPEC, devices={"d": device}))


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "a" * 64, "a b", "a\n"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(BadRequestError):
        validate(replace(SPEC, name=name))


def test_user_text_may_have_lines() -> None:
    validate(replace(SPEC, config={"user.user-data": "#cloud-config\n", "cloud-init.user-data": "a\nb"}))


def test_projects_have_groups_of_their_own() -> None:
    assert container_group("p", replace(SPEC, project="blue")) == "p/c-blue_c1"


def test_the_hook_survives_odd_paths() -> None:
    facts = replace(FACTS, post_stop_hook=Path("/d/it's a dir/post-stop"))
    assert config(facts=facts)["lxc.hook.post-stop"] == ["""/bin/sh '/d/it'"'"'s a dir/post-stop'"""]
