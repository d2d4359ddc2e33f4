"""Members in network namespaces: one bridge, one veth pair each, links that can be cut.

Owns namespaces, bridge and veth pairs whose names begin with its prefix; needs root. Must never touch an
interface it did not make.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys

BRIDGE_ADDRESS = 254
DELAY_RELAY = (sys.executable, "-m", "incus_actors.lab.delay_relay")
_TCP_HEADER = 32
_LARGE = 120  #: packets with so many bytes carry something
_OTHER_BYTE = 0x58


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True, text=True, timeout=30)


def _ip(*arguments: str, check: bool = True) -> None:
    _run("ip", *arguments, check=check)


def free_subnet() -> str:
    """Return the first three numbers of a /24 that no interface of this machine uses."""
    used = subprocess.run(["ip", "-o", "-4", "addr"], check=True, capture_output=True, text=True, timeout=30).stdout
    while True:
        subnet = f"10.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}"
        if f" {subnet}." not in used:
            return subnet


class NetworkLab:
    """`members` namespaces on one bridge: member i (from 1) has `<subnet>.<i>`.

    The daemons run in the namespaces; their unix sockets are reachable from everywhere. Names are made unique, so
    that labs can run side by side.
    """

    def __init__(self, prefix: str, members: int) -> None:
        if os.geteuid() != 0:
            raise PermissionError("network namespaces need root")
        self.prefix = f"{prefix[:3]}{secrets.token_hex(2)}x"
        self.subnet = free_subnet()
        self.members = members
        self.bridge = f"{self.prefix}br"
        self._relays: dict[int, subprocess.Popen[bytes]] = {}

    def namespace(self, member: int) -> str:
        """Return the name of a member's namespace."""
        return f"{self.prefix}{member}"

    def address(self, member: int) -> str:
        """Return a member's IPv4 address."""
        return f"{self.subnet}.{member}"

    def up(self) -> None:
        """Make everything."""
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.subnet}.{BRIDGE_ADDRESS}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        for member in range(1, self.members + 1):
            self.add(member)

    def add(self, member: int) -> None:
        """Make the namespace and the link of one member."""
        namespace, outside = self.namespace(member), self._outside(member)
        _ip("netns", "add", namespace)
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", outside, "master", self.bridge, "up")
        _ip("-n", namespace, "addr", "add", f"{self.address(member)}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        self.members = max(self.members, member)

    def cut(self, member: int) -> None:
        """Take a member's link down: silence, no resets, as if the cable was pulled."""
        _ip("link", "set", self._outside(member), "down")

    def heal(self, member: int) -> None:
        """Take a member's link up again."""
        _ip("link", "set", self._outside(member), "up")

    def drop_from(self, member: int, sources: list[int]) -> None:
        """Drop every packet that arrives at `member` from these others: they hear it, it doesn't hear them."""
        addresses = ", ".join(self.address(source) for source in sources)
        self._filter(member, "deaf", f"ip saddr {{ {addresses} }} drop")

    def hear_all(self, member: int) -> None:
        """Undo `drop_from`."""
        self._unfilter(member, "deaf")

    def lose(self, member: int, percent: int) -> None:
        """Drop so many of the packets that arrive at `member`, at random."""
        self._filter(member, "lossy", f"ip saddr {self.subnet}.0/24 numgen random mod 100 < {percent} drop")

    def lose_nothing(self, member: int) -> None:
        """Undo `lose`."""
        self._unfilter(member, "lossy")

    def corrupt(self, member: int, *, every: int, offset: int) -> None:
        """Alter a byte of one in `every` larger TCP packets that arrive at `member`, `offset` bytes behind the header (of 32
        bytes, with time stamps). The kernel corrects the checksum, as a broken router does that has taken the packet apart."""
        at = (_TCP_HEADER + offset) * 8
        match = f"ip saddr {self.subnet}.0/24 meta l4proto tcp meta length > {_LARGE + offset}"
        self._filter(member, "liar", f"{match} numgen random mod {every} == 0 @th,{at},8 set {_OTHER_BYTE}")

    def corrupt_nothing(self, member: int) -> None:
        """Undo `corrupt`."""
        self._unfilter(member, "liar")

    def refuse(self, member: int) -> None:
        """Answer new connections to `member` with a reset; those that it makes itself are let through."""
        match = f"ip saddr {self.subnet}.0/24 tcp flags & (syn | ack) == syn"
        self._filter(member, "closed", f"{match} reject with tcp reset")

    def refuse_nothing(self, member: int) -> None:
        """Undo `refuse`."""
        self._unfilter(member, "closed")

    def slow(self, member: int, kbit: int) -> None:
        """Let only so many kbit per second through to `member`, behind a queue of up to 400 ms."""
        limit = ["tbf", "rate", f"{kbit}kbit", "burst", "4kb", "latency", "400ms"]
        _run("tc", "qdisc", "replace", "dev", self._outside(member), "root", *limit)

    def fast(self, member: int) -> None:
        """Undo `slow`."""
        _run("tc", "qdisc", "del", "dev", self._outside(member), "root")

    def delay(self, member: int, how: str) -> None:
        """Have a process carry what goes to and from `member`, as delay_relay.py says. Raises RuntimeError if it can't."""
        outside, near, far = self._outside(member), f"{self.prefix}n{member}", f"{self.prefix}f{member}"
        _ip("link", "add", near, "type", "veth", "peer", "name", far)
        _ip("link", "set", far, "master", self.bridge, "up")
        _ip("link", "set", near, "arp", "off", "up")  # or this machine would answer for the members
        _ip("link", "set", outside, "nomaster", "arp", "off")
        relay = self._relays[member] = subprocess.Popen(
            [*DELAY_RELAY, outside, near, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert relay.stdout is not None
        if relay.stdout.readline() != b"ready\n":
            self.delay_nothing(member)
            raise RuntimeError(f"the relay before member {member} ended with {relay.returncode}")

    def delay_nothing(self, member: int) -> None:
        """Undo `delay`; what is on its way is lost."""
        relay = self._relays.pop(member)
        relay.communicate(timeout=10)  # the end of its input is its end
        _ip("link", "del", f"{self.prefix}n{member}")
        _ip("link", "set", self._outside(member), "master", self.bridge, "arp", "on")

    def _filter(self, member: int, table: str, rule: str) -> None:
        """Apply a rule to what arrives at `member`; each kind of fault has a table of its own, so that they go together."""
        self._nft(
            member,
            f"add table inet {table}",
            f"add chain inet {table} input {{ type filter hook input priority 0; policy accept; }}",
            f"add rule inet {table} input {rule}",
        )

    def _unfilter(self, member: int, table: str) -> None:
        self._nft(member, f"add table inet {table}", f"delete table inet {table}")

    def reset_connections(self, member: int) -> None:
        """Reset every TCP connection that a member has with others (both sides see it)."""
        subprocess.run(
            [*self.enter(member), "ss", "-K", "-t", "-n", "state", "established", "dst", f"{self.subnet}.0/24"],
            check=False,
            capture_output=True,
            timeout=30,
        )

    def close_listeners(self, member: int, which: str) -> None:
        """Close TCP listeners of a member's processes, in the terms of ss ("sport = :8443"): their descriptors stay open."""
        _run(*self.enter(member), "ss", "-K", "-l", "-t", "-n", which)

    def listening(self, member: int) -> set[int]:
        """Return the TCP ports that a member's processes listen on."""
        shown = subprocess.run(
            [*self.enter(member), "ss", "-H", "-l", "-t", "-n"], check=True, capture_output=True, text=True, timeout=30
        )
        return {int(line.split()[3].rpartition(":")[2]) for line in shown.stdout.splitlines()}

    def _nft(self, member: int, *commands: str) -> None:
        subprocess.run(
            [*self.enter(member), "nft", "-f", "-"],
            input="\n".join([*commands, ""]),
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def down(self) -> None:
        """Remove everything; nothing there is fine."""
        for member in list(self._relays):
            self.delay_nothing(member)
        for member in range(1, self.members + 1):
            _ip("link", "del", self._outside(member), check=False)
            _ip("netns", "del", self.namespace(member), check=False)
        _ip("link", "del", self.bridge, check=False)

    def enter(self, member: int) -> list[str]:
        """Return the command prefix that runs a program in a member's namespace.

        Not `ip netns exec`: that mounts a fresh /sys, in which no control groups are.
        """
        return ["nsenter", f"--net=/run/netns/{self.namespace(member)}", "--"]

    def _outside(self, member: int) -> str:
        return f"{self.prefix}v{member}"
