"""From an InstanceSpec to liblxc's configuration.

Owns one pure function, `lxc_config`, and the checks of what it cannot express. Called by drivers/lxc.py; must
never read the machine (facts come in as LxcMachine) nor pass on raw liblxc lines from users.
"""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from incus_actors.domain.instances import is_root_disk
from incus_actors.drivers.base import IdMapEntry, InstanceSpec
from incus_actors.drivers.idmap import lxc_lines
from incus_actors.drivers.limits import Machine, limit_files
from incus_actors.errors import BadRequestError
from incus_actors.model.config_values import is_true

#: Denied in every instance: they reach through namespaces or into the kernel (the list of LXC's common.seccomp).
SECCOMP_POLICY = """2
denylist
reject_force_umount
[all]
kexec_load errno 38
kexec_file_load errno 38
open_by_handle_at errno 38
init_module errno 38
finit_module errno 38
delete_module errno 38
"""

#: What a privileged instance keeps out of as well; an unprivileged one is bounded by its user namespace.
#: Others have all: in a user namespace of their own they are none of the machine's.
_DROPPED_PRIVILEGED = "sys_time sys_module sys_rawio mac_admin mac_override syslog wake_alarm"

#: major:minor of null, zero, full, random, urandom, tty, console, ptmx, pts/*, fuse, net/tun.
_DEVICES_ALLOWED = (
    "c *:* m",
    "b *:* m",
    *(f"c {numbers} rwm" for numbers in ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2", "136:*", "10:229")),
    "c 10:200 rwm",
)
#: what every container has where the host has it, as in Incus: for file systems in user space and for VPNs
_HOST_DEVICES = ("/dev/fuse", "/dev/net/tun")
_UNSUPPORTED_KEYS = ("raw.lxc", "raw.idmap", "raw.seccomp", "raw.apparmor", "raw.qemu")
_UNSUPPORTED_TRUE = (
    "security.idmap.isolated",
    "security.syscalls.deny_compat",
    "security.syscalls.intercept.bpf",
    "security.syscalls.intercept.bpf.devices",
    "security.syscalls.intercept.mknod",
    "security.syscalls.intercept.mount",
    "security.syscalls.intercept.mount.shift",
    "security.syscalls.intercept.sched_setscheduler",
    "security.syscalls.intercept.setxattr",
    "security.syscalls.intercept.sysinfo",
    "migration.stateful",
)
_SAFE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_INTERFACE = re.compile(r"[A-Za-z0-9._-]{1,15}")
PAIRED = ("bridged", "p2p")  #: kinds of nics with an end on the host
_CHECKED_BY_RULES = ("proxy", "unix-block", "unix-char")  #: by domain/, whatever the driver
_PRLIMIT = re.compile(r"limits\.kernel\.([a-z]+)")
_SYSCTL = re.compile(r"linux\.sysctl\.([a-z0-9._/-]+)")


@dataclass(frozen=True, slots=True)
class LxcMachine:
    """The facts of this machine that the configuration depends on."""

    machine: Machine
    idmap: tuple[IdMapEntry, ...]
    idmapped_mounts: bool  #: the root file system can be mapped at mount time
    cgroup_parent: str
    seccomp_file: Path
    post_stop_hook: Path
    device_rules: tuple[str, ...] = ()  #: what its control group may use besides the usual, as "c 1:5 rwm"


def container_group(parent: str, spec: InstanceSpec) -> str:
    """Return the control group of the instance's processes."""
    return f"{parent}/c-{spec.disk_name}"


def monitor_group(parent: str, spec: InstanceSpec) -> str:
    """Return the control group of its liblxc monitor."""
    return f"{parent}/m-{spec.disk_name}"


def validate(spec: InstanceSpec) -> None:
    """Raise BadRequestError for anything that this driver would have to ignore or that is unsafe."""
    if not _SAFE_NAME.fullmatch(spec.name):
        raise BadRequestError(f"Invalid instance name: {spec.name}")
    for key in _UNSUPPORTED_KEYS:
        if spec.config.get(key):
            raise BadRequestError(f"The configuration key {key} is not supported by this server")
    for key in _UNSUPPORTED_TRUE:
        if is_true(spec.config.get(key)):
            raise BadRequestError(f"The configuration key {key} is not supported by this server")
    for key, value in spec.config.items():
        if "\0" in value or ("\n" in value and not key.startswith(("user.", "cloud-init.", "volatile.", "image."))):
            raise BadRequestError(f"Invalid value for configuration key {key}")
    for name, device in sorted(spec.devices.items()):
        _validate_device(name, device)


def _validate_device(name: str, device: Mapping[str, str]) -> None:
    kind = device.get("type", "")
    if kind == "none":
        return
    if kind == "nic":
        _validate_nic(name, device)
    elif kind == "disk":
        if device.get("path") != "/":
            _validate_disk(name, device)
    elif kind not in _CHECKED_BY_RULES:
        raise BadRequestError(f'Unsupported device type "{kind}" of device "{name}"')


def _validate_nic(name: str, device: Mapping[str, str]) -> None:
    """A nic on a managed network becomes one of these kinds before the start (domain.nics.resolved)."""
    get = device.get
    parent = get("parent", "") or get("network", "")
    if not get("network"):
        if get("nictype") not in {"bridged", "macvlan", "p2p", "physical"}:
            raise BadRequestError(f'Device "{name}": nictype "{get("nictype", "")}" is not supported by this server')
        if not parent and get("nictype") != "p2p":
            raise BadRequestError(f'Device "{name}": Required property "parent" is missing')
    for value in (parent, get("name", name), get("host_name", "")):
        if value and not _INTERFACE.fullmatch(value):
            raise BadRequestError(f'Device "{name}": Invalid interface name "{value}"')


def nic_parent(nic: Mapping[str, str]) -> str:
    """Return the interface of the host that a nic hangs on, "" for none: of a VLAN the one that carries it."""
    parent = "" if nic.get("nictype") == "p2p" else nic.get("parent", "")
    return f"{parent}.{nic['vlan']}" if parent and nic.get("vlan") and nic.get("nictype") != "bridged" else parent


def inside_name(spec: InstanceSpec, device: str) -> str:
    """Return the name of a nic inside the instance."""
    return spec.devices[device].get("name") or spec.config.get(f"volatile.{device}.name", "") or device


def host_interface(spec: InstanceSpec, device: str) -> str:
    """Return the name of a nic's end on the host; stable over restarts, at most 15 characters. A nic without one has
    that name while it is made."""
    if spec.devices[device].get("nictype") in ("macvlan", "physical"):
        return f"mac{zlib.crc32(f'{spec.volume_dir}/{device}'.encode()):08x}"
    known = spec.devices[device].get("host_name") or spec.config.get(f"volatile.{device}.host_name", "")
    if known and _INTERFACE.fullmatch(known):
        return known
    return f"veth{zlib.crc32(f'{spec.volume_dir}/{device}'.encode()):08x}"


def peer_interface(host_name: str) -> str:
    """Return the name of a pair's other end while it is on the host."""
    return f"in{zlib.crc32(host_name.encode()):08x}"


def lxc_config(spec: InstanceSpec, facts: LxcMachine) -> list[tuple[str, str]]:
    """Return (key, value) in the order liblxc must be given them. Raises BadRequestError."""
    validate(spec)
    items = [
        ("lxc.log.file", str(spec.log_file)),
        ("lxc.log.level", "warn"),
        ("lxc.rootfs.path", str(spec.rootfs)),  # no "dir:" prefix: the binding reads back what it set (D14)
        ("lxc.arch", _architecture(spec.architecture)),
        ("lxc.uts.name", spec.name),
        ("lxc.init.cmd", "/sbin/init"),
        ("lxc.autodev", "1"),
        ("lxc.pty.max", "1024"),
        ("lxc.tty.max", "0"),
        ("lxc.console.buffer.size", "auto"),
        ("lxc.console.logfile", str(spec.log_dir / "console.log")),
        ("lxc.console.size", "auto"),
        ("lxc.seccomp.profile", str(facts.seccomp_file)),
        # liblxc gives this line to a shell, so the path is quoted; the script's text is ours (POST_STOP_HOOK).
        ("lxc.hook.post-stop", f"/bin/sh {shlex.quote(str(facts.post_stop_hook))}"),
        ("lxc.cgroup.dir.container", container_group(facts.cgroup_parent, spec)),
        ("lxc.cgroup.dir.monitor", monitor_group(facts.cgroup_parent, spec)),
        ("lxc.cgroup.dir.monitor.pivot", f"{facts.cgroup_parent}/pivot"),
    ]
    items += _privileges(spec, facts)
    items += _limits(spec, facts)
    for key, value in sorted(spec.config.items()):
        if key.startswith("environment."):
            items.append(("lxc.environment", f"{key.removeprefix('environment.')}={value}"))
        elif match := _PRLIMIT.fullmatch(key):
            items.append((f"lxc.prlimit.{match[1]}", value))
        elif match := _SYSCTL.fullmatch(key):
            items.append((f"lxc.sysctl.{match[1]}", value))
    return items + _network(spec)


def _privileges(spec: InstanceSpec, facts: LxcMachine) -> list[tuple[str, str]]:
    idmap = () if spec.privileged else (spec.idmap or facts.idmap)
    if not idmap and not spec.privileged:
        raise BadRequestError("No id map for an unprivileged instance")
    items = [("lxc.idmap", line) for line in lxc_lines(idmap)]
    options = ["idmap=container"] if idmap and facts.idmapped_mounts else []
    if any(is_root_disk(device) and is_true(device.get("readonly")) for device in spec.devices.values()):
        options.append("ro")
    if options:
        items.append(("lxc.rootfs.options", ",".join(options)))
    if spec.privileged:
        items += [
            ("lxc.mount.auto", "proc:mixed sys:mixed cgroup:mixed:force"),
            ("lxc.cap.drop", _DROPPED_PRIVILEGED),
        ]
    else:
        items.append(("lxc.mount.auto", "proc:rw sys:rw cgroup:rw:force"))
    items += [("lxc.mount.entry", f"{path} {path[1:]} none bind,create=file,optional 0 0") for path in _HOST_DEVICES]
    if is_true(spec.config.get("security.nesting")):
        # A nested manager may mount proc and sysfs only if it can see a fully visible one.
        items += [
            ("lxc.mount.entry", "proc dev/.lxc/proc proc create=dir,optional 0 0"),
            ("lxc.mount.entry", "sys dev/.lxc/sys sysfs create=dir,optional 0 0"),
        ]
    return items


def _limits(spec: InstanceSpec, facts: LxcMachine) -> list[tuple[str, str]]:
    versions = facts.machine.versions
    items: list[tuple[str, str]] = []
    if "devices" in versions:
        prefix = "lxc.cgroup" if versions["devices"] == 1 else "lxc.cgroup2"
        items.append((f"{prefix}.devices.deny", "a"))
        items += [(f"{prefix}.devices.allow", rule) for rule in (*_DEVICES_ALLOWED, *facts.device_rules)]
    for name, value in limit_files(spec.config, facts.machine, spec.disk_name).items():
        prefix = "lxc.cgroup" if versions[name.partition(".")[0]] == 1 else "lxc.cgroup2"
        items.append((f"{prefix}.{name}", value))
    return items


def _network(spec: InstanceSpec) -> list[tuple[str, str]]:
    nics = [(name, device) for name, device in sorted(spec.devices.items()) if device.get("type") == "nic"]
    if not nics:
        return [("lxc.net.0.type", "empty"), ("lxc.net.0.flags", "up")]
    items: list[tuple[str, str]] = []
    for index, (name, device) in enumerate(nics):
        items += _nic(f"lxc.net.{index}", spec, name, device)
    return items


def _nic(prefix: str, spec: InstanceSpec, name: str, device: Mapping[str, str]) -> list[tuple[str, str]]:
    pair = device.get("nictype") in PAIRED
    kind = "macvlan" if device.get("nictype") == "macvlan" else "phys"
    items = [(f"{prefix}.type", kind), (f"{prefix}.flags", "up"), (f"{prefix}.name", inside_name(spec, name))]
    if kind == "macvlan":
        items.append((f"{prefix}.macvlan.mode", device.get("mode") or "bridge"))
    # One end of a pair is made, and put into its bridge, before the start (lxc_nics.prepare): liblxc looks for bridges in
    # /sys, which need not be that of the daemon's network namespace.
    link = peer_interface(host_interface(spec, name)) if pair else nic_parent(device)
    items.append((f"{prefix}.link", link))
    hwaddr = device.get("hwaddr") or spec.config.get(f"volatile.{name}.hwaddr", "")
    if hwaddr:
        items.append((f"{prefix}.hwaddr", hwaddr))
    if device.get("mtu"):
        items.append((f"{prefix}.mtu", device["mtu"]))
    return items


def _validate_disk(name: str, device: Mapping[str, str]) -> None:
    """A volume's name becomes a path of the host before the start (actors/disks.py); the mounting is lxc_disks'."""
    source, path = "/" if device.get("pool") else device.get("source", ""), device.get("path", "")
    if not source.startswith("/") or not path or "\n" in source + path:
        raise BadRequestError(f'Device "{name}": "source" must be absolute, and "path" be one line')


def _architecture(name: str) -> str:
    return {"i686": "i686", "aarch64": "aarch64", "armv7l": "armv7l"}.get(name, name)
