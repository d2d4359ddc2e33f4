"""DHCP and DNS of one bridge: dnsmasq's arguments, its process, its leases.

Owns the files below `<dir>/networks/<name>` whose names begin with `dnsmasq.`, and the process that they belong to.
Called by drivers/bridge.py and DnsmasqActor. The process outlives the daemon: the next one recognises it by pid, start
time and arguments. Must never signal a process that it can't prove to be this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import pwd
import re
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from incus_actors.drivers import processes
from incus_actors.drivers.base import DriverError
from incus_actors.drivers.child import Child
from incus_actors.drivers.commands import which
from incus_actors.drivers.processes import ProcessIdentity
from incus_actors.model.config_values import is_true
from incus_actors.model.network_keys import dhcp_enabled, network_domain
from incus_actors.model.network_values import Address, address_of, items, parse_ranges, subnet_of

Config = Mapping[str, str]

_READY_S: Final = 5.0
_END_S: Final = 5.0
_RAW: Final = "dnsmasq.raw"
_READY: Final = "dnsmasq.pid"
_HOST_FILE = re.compile(r"[A-Za-z0-9_.-]{1,200}\Z")


def wanted(config: Config) -> bool:
    """Return whether a bridge has anything to serve: it has an address."""
    return any(subnet_of(config.get(f"ipv{version}.address")) is not None for version in (4, 6))


def arguments(directory: Path, network: str, config: Config) -> list[str]:
    """Return the whole command line, the program first."""
    argv = [
        "dnsmasq",
        "--keep-in-foreground",
        "--strict-order",
        "--bind-interfaces",
        "--except-interface=lo",
        f"--pid-file={directory / _READY}",
        "--no-ping",
        f"--interface={network}",
        "--dhcp-rapid-commit",
        "--no-negcache",
        "--quiet-dhcp",
        "--quiet-dhcp6",
        "--quiet-ra",
        "--dhcp-no-override",
        "--dhcp-authoritative",
        f"--dhcp-leasefile={directory / 'dnsmasq.leases'}",
        f"--dhcp-hostsfile={directory / 'dnsmasq.hosts'}",
    ]
    argv += _ipv4(config)
    argv += _ipv6(network, config)
    argv += _names(network, config)
    argv.append(f"--conf-file={directory / _RAW}")
    return argv + _user()


def _ipv4(config: Config) -> list[str]:
    address = address_of(config.get("ipv4.address"))
    subnet = subnet_of(config.get("ipv4.address"))
    if address is None or subnet is None:
        return []
    argv = [f"--listen-address={address}"]
    if not dhcp_enabled(config, 4):
        return argv
    expiry = config.get("ipv4.dhcp.expiry") or "1h"
    ranges = parse_ranges(config.get("ipv4.dhcp.ranges")) or [_whole(subnet)]
    argv += [f"--dhcp-range={first},{last},{expiry}" for first, last in ranges]
    options = {
        "3": config.get("ipv4.dhcp.gateway", ""),
        "121": config.get("ipv4.dhcp.routes", ""),
        "26": config.get("bridge.mtu", ""),
        "119": ",".join(items(config.get("dns.search"))),
        "6": ",".join(i for i in items(config.get("dns.nameservers")) if ":" not in i),
    }
    return argv + [f"--dhcp-option-force={number},{value}" for number, value in options.items() if value]


def _whole(subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[Address, Address]:
    """Return the range for leases without ranges configured: all but the first host and the broadcast address."""
    low = 2 if subnet.num_addresses > 4 else subnet.num_addresses - 2
    return subnet.network_address + low, subnet.broadcast_address - (1 if subnet.num_addresses > 2 else 0)


def _ipv6(network: str, config: Config) -> list[str]:
    address = address_of(config.get("ipv6.address"))
    subnet = subnet_of(config.get("ipv6.address"))
    if address is None or subnet is None:
        return []
    argv = [f"--listen-address={address}", "--enable-ra"]
    expiry = config.get("ipv6.dhcp.expiry") or "1h"
    if not dhcp_enabled(config, 6):
        return [*argv, f"--dhcp-range=::,constructor:{network},ra-only"]
    if is_true(config.get("ipv6.dhcp.stateful")):
        ranges = parse_ranges(config.get("ipv6.dhcp.ranges")) or [_whole(subnet)]
        argv += [f"--dhcp-range={first},{last},{subnet.prefixlen},{expiry}" for first, last in ranges]
    else:
        argv.append(f"--dhcp-range=::,constructor:{network},ra-stateless,ra-names")
    servers = [f"[{item}]" for item in items(config.get("dns.nameservers")) if ":" in item]
    return argv + ([f"--dhcp-option-force=option6:dns-server,{','.join(servers)}"] if servers else [])


def _names(network: str, config: Config) -> list[str]:
    mode = config.get("dns.mode") or "managed"
    if mode == "none":
        return ["--dhcp-ignore-names"]
    domain = network_domain(config)
    argv = [f"--domain={domain}", f"--interface-name=_gateway.{domain},{network}", f"--local=/{domain}/"]
    if mode == "managed":  # only hosts that we have named have a name
        argv.append("--dhcp-ignore-names=tag:!known")
    return argv


def _user() -> list[str]:
    if os.geteuid() != 0:
        return []
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return []
    import grp

    return ["--user=nobody", f"--group={grp.getgrgid(entry.pw_gid).gr_name}"]


def host_line(hwaddr: str, addresses: Sequence[str], name: str, config: Config) -> str:
    """Return dnsmasq's line for one nic: what its addresses are, and its name where names are managed."""
    parts = [hwaddr, *(f"[{address}]" if ":" in address else address for address in addresses)]
    if (config.get("dns.mode") or "managed") == "managed":
        parts.append(name)
    return ",".join(parts)


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease that dnsmasq has given out. `hwaddr` "" where only a DUID is known."""

    address: str
    hwaddr: str
    hostname: str


def read_leases(directory: Path) -> list[Lease]:
    """Return the leases that have not run out; none without a file."""
    try:
        lines = (directory / "dnsmasq.leases").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    now = time.time()
    for line in lines:
        words = line.split()
        if len(words) < 4 or not words[0].isdigit() or (int(words[0]) != 0 and int(words[0]) < now):
            continue
        name = "" if words[3] == "*" else words[3]
        hwaddr = words[1].lower() if words[1].count(":") == 5 else ""
        found.append(Lease(words[2], hwaddr, name))
    return found


class Dnsmasq:
    """The process of one network. One task at a time uses it (DnsmasqActor sees to it)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pidfd = -1
        self._identity: ProcessIdentity | None = None
        self._ended: asyncio.Future[None] | None = None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._identity is not None and self._identity.alive()

    @property
    def pid(self) -> int:
        """The process, 0 if there is none."""
        return self._identity.pid if self._identity is not None and self.running else 0

    async def ensure(self, argv: Sequence[str], raw: str, hosts: Mapping[str, str]) -> bool:
        """Have it run with these arguments; return whether it was (re)started. Raises DriverError."""
        changed_hosts = self.write_hosts(hosts)
        if not self.running:
            self._adopt()
        if self.running and self._same(argv, raw):
            if changed_hosts:
                self.reload()
            return False
        await self.stop()
        (self._directory / _RAW).write_text(f"{raw}\n")
        await self._start(argv)
        return True

    def _same(self, argv: Sequence[str], raw: str) -> bool:
        """Whether what runs is what is wanted."""
        try:
            old = (self._directory / _RAW).read_text()
        except OSError:
            return False
        return self._identity is not None and _command(self._identity.pid)[1:] == list(argv[1:]) and old == f"{raw}\n"

    def write_hosts(self, hosts: Mapping[str, str]) -> bool:
        """Make the directory of hosts hold exactly these files; return whether anything changed."""
        directory = self._directory / "dnsmasq.hosts"
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        changed = False
        for path in directory.iterdir():
            if path.name not in hosts:
                path.unlink(missing_ok=True)
                changed = True
        for name, line in hosts.items():
            if not _HOST_FILE.match(name):
                raise DriverError(f"Unsafe name of a host: {name!r}")
            path = directory / name
            text = f"{line}\n"
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                path.chmod(0o644)
                changed = True
        return changed

    def reload(self) -> None:
        """Have it read the hosts again; nothing if it does not run."""
        self._signal(signal.SIGHUP)

    async def _start(self, argv: Sequence[str]) -> None:
        program = which(argv[0])
        if program is None:
            raise DriverError("DHCP and DNS of networks need the program dnsmasq (Debian: dnsmasq-base)")
        ready = self._directory / _READY
        ready.unlink(missing_ok=True)
        for directory in (self._directory.parent, self._directory):
            directory.chmod(0o711)  # dnsmasq is "nobody" when it reads its hosts
        with os.fdopen(os.memfd_create("dnsmasq", os.MFD_CLOEXEC), "w+b") as errors:
            child = Child([program, *argv[1:]], stderr=errors)
            deadline = time.monotonic() + _READY_S
            while not _written_pid(ready):  # once all its sockets are bound
                if child.exit_code >= 0 or time.monotonic() > deadline:
                    child.kill()
                    code = await child.wait()
                    errors.seek(0)
                    said = " ".join(errors.read(2000).decode(errors="replace").split())
                    raise DriverError(f'The DNS and DHCP service exited prematurely: exit status {code} ("{said}")')
                await asyncio.sleep(0.002)
        identity = processes.identity_of(child.pid)
        if identity is None:
            raise DriverError("The DNS and DHCP service exited prematurely")
        self._watch(identity)

    def _adopt(self) -> None:
        """Take over the process that an earlier daemon has started: its command line names our file."""
        pid = _written_pid(self._directory / _READY)
        identity = processes.identity_of(pid) if pid else None
        if identity is not None and f"--pid-file={self._directory / _READY}" in _command(pid):
            self._watch(identity)

    def _watch(self, identity: ProcessIdentity) -> None:
        self.release()
        try:
            self._pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        self._identity = identity
        ended = self._ended = loop.create_future()
        loop.add_reader(self._pidfd, self._gone, ended)

    def _gone(self, ended: asyncio.Future[None]) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
        if not ended.done():
            ended.set_result(None)

    async def ended(self) -> None:
        """Return when the process is gone; at once if there is none."""
        ended = self._ended
        if ended is not None:
            await asyncio.shield(ended)

    def _signal(self, number: int) -> None:
        if self._pidfd >= 0 and self.running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def stop(self) -> None:
        """End the process, also one of an earlier daemon, and wait for its end."""
        if not self.running:
            self._adopt()
        if self.running:
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.ended(), _END_S)
            except TimeoutError:
                self._signal(signal.SIGKILL)
                await self.ended()
        self.release()
        (self._directory / _READY).unlink(missing_ok=True)

    def release(self) -> None:
        """Look no longer; the process goes on."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._ended is not None and not self._ended.done():
            self._ended.cancel()
        self._identity = self._ended = None


def _written_pid(path: Path) -> int:
    """Return what a pid-file says; 0 if it isn't there, or is there and still empty."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:
        return []


def remove_files(directory: Path) -> None:
    """Remove all files of a network."""
    shutil.rmtree(directory, ignore_errors=True)
