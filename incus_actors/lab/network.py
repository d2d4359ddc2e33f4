"""Members in network namespaces: one bridge, one veth pair each, links that can be cut.

Owns namespaces, bridge and veth pairs whose names begin with its prefix; needs root. Must never touch an
interface it did not make.
"""

from __future__ import annotations

import os
import secrets
import subprocess

BRIDGE_ADDRESS = 254


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True, timeout=30)


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
        self._nft(
            member,
            "add table inet lab",
            "add chain inet lab input { type filter hook input priority 0; policy accept; }",
            f"add rule inet lab input ip saddr {{ {addresses} }} drop",
        )

    def hear_all(self, member: int) -> None:
        """Undo `drop_from`."""
        self._nft(member, "add table inet lab", "delete table inet lab")

    def reset_connections(self, member: int) -> None:
        """Reset every TCP connection that a member has with others (both sides see it)."""
        subprocess.run(
            [*self.enter(member), "ss", "-K", "-t", "-n", "state", "established", "dst", f"{self.subnet}.0/24"],
            check=False,
            capture_output=True,
            timeout=30,
        )

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
