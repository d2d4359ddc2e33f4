"""Limits and restrictions of projects, with the texts that a real Incus 6.0.4 gave to the same requests."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from incus_actors.domain import project_rules as rules
from incus_actors.domain.project_rules import Subject
from incus_actors.errors import ApiError, ForbiddenError, MemberError

ROOT = {"root": {"type": "disk", "path": "/", "pool": "def"}}


def one(
    name: str = "c1", kind: str = "container", devices: Mapping[str, Mapping[str, str]] | None = None, **config: str
) -> Subject:
    return Subject(name, kind, {k.replace("__", "."): v for k, v in config.items()}, devices or ROOT)


def sized(name: str, size: str) -> Subject:
    return one(name, devices={"root": {**ROOT["root"], "size": size}})


@pytest.mark.parametrize(
    ("project", "text"),
    [
        ({"limits.instances": "1"}, 'Reached maximum number of instances in project "p"'),
        (
            {"limits.instances": "5", "limits.containers": "1"},
            'Reached maximum number of instances of type "container" in project "p"',
        ),
        ({"limits.containers": "2", "limits.virtual-machines": "0", "limits.instances": "2"}, ""),
        ({}, ""),
    ],
)
def test_room_for_one_more(project, text):
    if not text:
        return rules.check_room("p", project, [one()], "container")
    with pytest.raises(MemberError, match=f"^{re.escape(text)}$"):
        rules.check_room("p", project, [one()], "container")
    return None


NO_CONFIG = 'Instance "c2" in project "p" has no "{}" config, either directly or via a profile'


@pytest.mark.parametrize(
    ("key", "limit", "subjects", "text"),
    [
        ("memory", "1GiB", [one(limits__memory="512MiB"), one("c2", limits__memory="512MiB")], ""),
        (
            "memory",
            "1GiB",
            [one(limits__memory="512MiB"), one("c2", limits__memory="600MiB")],
            'Reached maximum aggregate value "1GiB" for "limits.memory" in project "p"',
        ),
        ("memory", "1GiB", [one("c2")], rules.USAGE + NO_CONFIG.format("limits.memory")),
        (
            "memory",
            "1GiB",
            [one("c2", limits__memory="50%")],
            rules.USAGE + 'Failed parsing "limits.memory" for instance "c2" in project "p"',
        ),
        ("cpu", "2", [one(limits__cpu="1"), one("c2", limits__cpu="1")], ""),
        (
            "cpu",
            "2",
            [one(limits__cpu="1"), one("c2", limits__cpu="2")],
            'Reached maximum aggregate value "2" for "limits.cpu" in project "p"',
        ),
        (
            "cpu",
            "2",
            [one("c2", limits__cpu="0-1")],
            rules.USAGE + 'Failed parsing "limits.cpu" for instance "c2" in project "p"',
        ),
        (
            "processes",
            "150",
            [one(limits__processes="100"), one("c2", limits__processes="100")],
            'Reached maximum aggregate value "150" for "limits.processes" in project "p"',
        ),
        (
            "disk",
            "1GiB",
            [one("c2")],
            rules.USAGE + 'Instance "c2" in project "p" has no "size" config set on the root device either directly or'
            " via a profile",
        ),
        ("disk", "1GiB", [sized("c1", "100MiB"), rules.volume_subject("v", "def", "900MiB")], ""),
        (
            "disk",
            "1GiB",
            [sized("c1", "200MiB"), rules.volume_subject("v", "def", "900MiB")],
            'Reached maximum aggregate value "1GiB" for "limits.disk" in project "p"',
        ),
        (
            "disk",
            "1GiB",
            [rules.volume_subject("v", "def", "")],
            rules.USAGE + 'Custom volume "v" in project "p" has no "size" config set',
        ),
        ("disk.pool.fast", "1GiB", [sized("c1", "2GiB"), rules.volume_subject("v", "fast", "900MiB")], ""),
        (
            "disk.pool.fast",
            "1GiB",
            [rules.volume_subject("v", "fast", "2GiB")],
            'Reached maximum aggregate value "1GiB" for "limits.disk.pool.fast" in project "p"',
        ),
        ("memory", "1GiB", [rules.volume_subject("v", "def", "")], ""),
        (
            "disk",
            "1GiB",
            [sized("c1", "100MiB"), sized("c2", "2GiB")],
            'Reached maximum aggregate value "1GiB" for "limits.disk" in project "p"',
        ),
    ],
)
def test_what_instances_are_given_together(key, limit, subjects, text):
    project = {f"limits.{key}": limit}
    if not text:
        return rules.check_aggregates("p", project, subjects)
    with pytest.raises(MemberError, match=f"^{re.escape(text)}$"):
        rules.check_aggregates("p", project, subjects)
    return None


@pytest.mark.parametrize(
    ("key", "limit", "text"),
    [
        (
            "containers",
            "0",
            (
                'Can\'t change "limits.containers" in project "p": "limits.containers" is too low: there currently are 1'
                ' instances of type container in project "p"'
            ),
        ),
        (
            "instances",
            "0",
            (
                'Can\'t change limits.instances in project "p": "limits.instances" is too low: there currently are 1 total'
                ' instances in project "p"'
            ),
        ),
        ("memory", "256MiB", '"limits.memory" is too low: current total is "512.0MiB"'),
        ("cpu", "1", '"limits.cpu" is too low: current total is "2"'),
        (
            "processes",
            "5",
            'Instance "c1" in project "p" has no "limits.processes" config, either directly or via a profile',
        ),
        ("memory", "512MiB", ""),
        ("virtual-machines", "0", ""),
    ],
)
def test_a_limit_below_what_is_there(key, limit, text):
    present = [one(limits__memory="512MiB", limits__cpu="2")]
    if not text:
        return rules.check_new_limits("p", {}, {f"limits.{key}": limit}, present)
    with pytest.raises(MemberError, match=f"^{re.escape(text)}$"):
        rules.check_new_limits("p", {}, {f"limits.{key}": limit}, present)
    rules.check_new_limits("p", {f"limits.{key}": limit}, {f"limits.{key}": limit}, present)  # it was so before
    return None


def test_volumes_are_no_instances():
    present = [one(), rules.volume_subject("v", "def", "")]
    rules.check_new_limits("p", {}, {"limits.instances": "1"}, present)
    assert [rules.disk_of(subject) for subject in present] == [("def", ""), ("def", "")]
    with pytest.raises(MemberError, match=r'^Custom volume "v" in project "p" has no "size" config set$'):
        rules.check_new_limits("p", {}, {"limits.disk": "1GiB"}, present[1:])
    rules.check_new_limits("p", {}, {"limits.disk.pool.def": "0"}, [sized("c1", "1GiB")])


WHERE = 'on container "c1" of project "p"'
FORBIDDEN_CONFIG = [
    ("security.nesting", "true", f'Invalid value "true" for config "security.nesting" {WHERE}: Container nesting is'),
    ("security.privileged", "true", f'"security.privileged" {WHERE}: Privileged containers are forbidden'),
    ("raw.lxc", "x=y", f'Use of low-level config "raw.lxc" {WHERE} is forbidden'),
    ("linux.kernel_modules", "x", f'Use of low-level config "linux.kernel_modules" {WHERE} is forbidden'),
    ("boot.host_shutdown_timeout", "5", f'Use of low-level config "boot.host_shutdown_timeout" {WHERE} is forbidden'),
    ("security.idmap.base", "5", f'Use of low-level config "security.idmap.base" {WHERE} is forbidden'),
    ("security.syscalls.intercept.mknod", "true", f"{WHERE}: Container syscall interception is forbidden"),
    ("raw.idmap", "both 1 1", f'Use of low-level "raw.idmap" element 0 {WHERE} is forbidden'),
    ("security.guestapi.images", "true", f'Use of low-level config "security.guestapi.images" {WHERE} is forbidden'),
    ("raw.seccomp", "x", f'Use of low-level config "raw.seccomp" {WHERE} is forbidden'),
    ("raw.apparmor", "x", f'Use of low-level config "raw.apparmor" {WHERE} is forbidden'),
]
FORBIDDEN_DEVICES = [
    ({"type": "disk", "source": "/tmp", "path": "/x"}, "Attaching disks not backed by a pool is forbidden"),
    ({"type": "nic", "nictype": "bridged", "parent": "lo"}, "Only managed network devices are allowed"),
    ({"type": "gpu"}, "GPU devices are forbidden"),
    ({"type": "unix-char", "path": "/dev/null"}, "Unix character devices are forbidden"),
    ({"type": "unix-block", "path": "/dev/null"}, "Unix block devices are forbidden"),
    ({"type": "proxy"}, "Proxy devices are forbidden"),
    ({"type": "usb"}, "USB devices are forbidden"),
    ({"type": "unix-hotplug"}, "Unix hotplug devices are forbidden"),
    ({"type": "pci"}, "PCI devices are forbidden"),
    ({"type": "infiniband"}, "Infiniband devices are forbidden"),
]


@pytest.mark.parametrize(("key", "value", "text"), FORBIDDEN_CONFIG)
def test_a_restricted_project_forbids_config(key, value, text):
    subject = Subject("c1", "container", {key: value}, ROOT)
    rules.check_restrictions("p", {}, subject)
    with pytest.raises(MemberError, match=re.escape(text)):
        rules.check_restrictions("p", {"restricted": "true"}, subject)


@pytest.mark.parametrize(("device", "text"), FORBIDDEN_DEVICES)
def test_a_restricted_project_forbids_devices(device, text):
    subject = one(devices={**ROOT, "d": device})
    rules.check_restrictions("p", {}, subject)
    with pytest.raises(MemberError, match=f'^Invalid device "d" {re.escape(WHERE)}: {text}$'):
        rules.check_restrictions("p", {"restricted": "true"}, subject)


@pytest.mark.parametrize(
    ("allowed", "config", "devices"),
    [
        ({}, {"user.a": "1", "limits.cpu": "2", "nvidia.runtime": "true", "security.nesting": "false"}, {}),
        ({"restricted.containers.nesting": "allow"}, {"security.nesting": "true"}, {}),
        ({"restricted.containers.privilege": "allow"}, {"security.privileged": "true"}, {}),
        ({"restricted.containers.lowlevel": "allow"}, {"raw.lxc": "x", "security.idmap.base": "5"}, {}),
        ({"restricted.containers.interception": "full"}, {"security.syscalls.intercept.mount": "true"}, {}),
        ({"restricted.idmap.uid": "1-5,7", "restricted.idmap.gid": "7"}, {"raw.idmap": "uid 2-4 0\nboth 7 9"}, {}),
        ({"restricted.devices.gpu": "allow"}, {}, {"g": {"type": "gpu"}}),
        ({}, {}, {"t": {"type": "tpm"}, "n": {"type": "none"}, "e": {"type": "nic", "network": "br0"}}),
        ({}, {}, {"v": {"type": "disk", "pool": "def", "source": "vol", "path": "/v"}}),
        ({"restricted.devices.disk": "allow"}, {}, {"d": {"type": "disk", "source": "/etc", "path": "/x"}}),
        (
            {"restricted.devices.disk": "allow", "restricted.devices.disk.paths": "/srv, /tmp"},
            {},
            {"d": {"type": "disk", "source": "/tmp/a", "path": "/x"}},
        ),
        ({"restricted.devices.nic": "allow"}, {}, {"e": {"type": "nic", "nictype": "bridged"}}),
    ],
)
def test_what_is_allowed(allowed, config, devices):
    rules.check_restrictions(
        "p", {"restricted": "true", **allowed}, Subject("c1", "container", config, {**ROOT, **devices})
    )


@pytest.mark.parametrize("source", ["/etc", "/tmpx", "/tmp/../etc"])
def test_paths_outside_of_the_allowed_ones(source):
    project = {"restricted": "true", "restricted.devices.disk": "allow", "restricted.devices.disk.paths": "/tmp"}
    with pytest.raises(MemberError, match=f'Disk source path "{source}" not allowed'):
        rules.check_restrictions("p", project, one(devices={"d": {"type": "disk", "source": source, "path": "/x"}}))


@pytest.mark.parametrize("line", ["uid 1-9 0", "both 2 0", "uid x 0", "all 2 0", "uid 2"])
def test_ids_outside_of_the_allowed_ones(line):
    project = {"restricted": "true", "restricted.idmap.uid": "2-5"}
    with pytest.raises(MemberError, match="element 0"):
        rules.check_restrictions("p", project, one(raw__idmap=line))


def test_volatile_keys_and_things_that_take_space():
    with pytest.raises(MemberError, match=r'^Setting "volatile.x" on container "c1" in project "p" is forbidden$'):
        rules.check_given("p", {"restricted": "true"}, one(), {"volatile.x": "1"})
    rules.check_given("p", {}, one(), {"volatile.x": "1"})
    for what in ("backup", "snapshot"):
        rules.check_may("p", {}, what)
        rules.check_may("p", {"restricted": "true", f"restricted.{what}s": "allow"}, what)
        with pytest.raises(ForbiddenError, match=f'^Project "p" doesn\'t allow for {what} creation$'):
            rules.check_may("p", {"restricted": "true"}, what)


@pytest.mark.parametrize(
    ("project", "target", "groups", "text"),
    [
        ({}, "m1", ["default"], ""),
        ({"restricted.cluster.target": "block"}, "m1", ["default"], ""),  # not restricted at all
        ({"restricted": "true"}, "", [], ""),
        ({"restricted": "true"}, "m1", ["default"], "This project doesn't allow cluster member targeting"),
        ({"restricted": "true", "restricted.cluster.target": "allow"}, "m1", ["default"], ""),
        (
            {"restricted": "true", "restricted.cluster.target": "allow", "restricted.cluster.groups": "g1,g2"},
            "m1",
            ["default"],
            'Project isn\'t allowed to use this cluster member: "m1"',
        ),
        (
            {"restricted": "true", "restricted.cluster.target": "allow", "restricted.cluster.groups": "g1,g2"},
            "m1",
            ["g2"],
            "",
        ),
        ({"restricted": "true", "restricted.cluster.groups": "g1"}, "@g1", [], ""),
        (
            {"restricted": "true", "restricted.cluster.groups": "g1"},
            "@g2",
            [],
            'Project isn\'t allowed to use this cluster group: "g2"',
        ),
        ({"restricted": "true"}, "@g2", [], ""),
    ],
)
def test_targets(project, target, groups, text):
    if not text:
        return rules.check_target(project, target, groups)
    with pytest.raises(ApiError, match=f"^{text}$") as refused:
        rules.check_target(project, target, groups)
    assert refused.value.status == 403
    return None
