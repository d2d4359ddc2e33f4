"""Finding each other on the local network: multicast DNS through zeroconf, per interface, until a deadline.

Owns the service type and what is said in it; rest/discovery_agent.py announces, the CLI browses. What is heard here
comes from anybody: it is a hint where to look, never a reason to trust. zeroconf is imported only when it is used.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncZeroconf

SERVICE: Final = "_incus-actors._tcp.local."
VERSION: Final = "1"
_HEARD_MAX: Final = 512
_RESOLVE_MS: Final = 1500


class MdnsError(Exception):
    """Multicast DNS can't be used here; the text says why."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What somebody on the network says. `addresses` in order of preference (IPv4 first)."""

    name: str
    addresses: tuple[str, ...]
    port: int
    fingerprint: str


class Announcement:
    """This server's name on the network, while it waits. Raises MdnsError from `start`."""

    def __init__(self, *, name: str, fingerprint: str, port: int, addresses: Sequence[str]) -> None:
        self._name = name
        self._fingerprint = fingerprint
        self._port = port
        self._addresses = list(addresses)
        self._zeroconf: AsyncZeroconf | None = None

    async def start(self) -> None:
        """Announce it on the interfaces of its addresses."""
        from zeroconf import Error, IPVersion, ServiceInfo
        from zeroconf.asyncio import AsyncZeroconf

        v4_only = all(":" not in address for address in self._addresses)
        info = ServiceInfo(
            SERVICE,
            f"{_label(self._name)}-{self._fingerprint[:8]}.{SERVICE}",
            port=self._port,
            parsed_addresses=self._addresses,
            properties={"v": VERSION, "name": self._name, "fp": self._fingerprint},
            server=f"{_label(self._name)}-{self._fingerprint[:8]}.local.",
        )
        try:
            self._zeroconf = AsyncZeroconf(
                interfaces=self._addresses, ip_version=IPVersion.V4Only if v4_only else IPVersion.All
            )
            await self._zeroconf.async_register_service(info, allow_name_change=True)
        except (OSError, Error) as problem:
            await self.stop()
            raise MdnsError(f"this server can't be announced: {problem!r}") from problem

    async def stop(self) -> None:
        """Say good-bye and close."""
        if self._zeroconf is not None:
            zeroconf, self._zeroconf = self._zeroconf, None
            await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()


def browse(addresses: Sequence[str], *, timeout_s: float, enough: int = 0) -> list[Heard]:
    """Return who announces itself on the interfaces with these addresses, heard within `timeout_s` seconds.

    Ends early when `enough` have been heard. Blocks. Raises MdnsError.
    """
    from zeroconf import Error, IPVersion, ServiceBrowser, ServiceStateChange, Zeroconf

    deadline = time.monotonic() + timeout_s
    names: set[str] = set()

    def changed(zeroconf: Any, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            names.discard(name)
        elif len(names) < _HEARD_MAX:
            names.add(name)

    logging.getLogger("zeroconf").setLevel(logging.ERROR)  # strangers' nonsense is no news for this terminal
    v4_only = all(":" not in address for address in addresses)
    try:
        zeroconf = Zeroconf(interfaces=list(addresses), ip_version=IPVersion.V4Only if v4_only else IPVersion.All)
    except (OSError, Error) as problem:
        raise MdnsError(f"multicast DNS can't be used on these interfaces: {problem!r}") from problem
    try:
        browser = ServiceBrowser(zeroconf, SERVICE, handlers=[changed])
        while time.monotonic() < deadline and not (enough and len(names) >= enough):
            time.sleep(0.05)
        found = [_resolved(zeroconf.get_service_info(SERVICE, name, timeout=_RESOLVE_MS)) for name in sorted(names)]
        browser.cancel()
    finally:
        zeroconf.close()
    return sorted({one for one in found if one is not None}, key=lambda one: (one.name, one.addresses))


def _resolved(info: ServiceInfo | None) -> Heard | None:
    """Return what an answer says, None if it is not of our kind."""
    if info is None or info.port is None or not 0 < info.port < 65536:
        return None
    texts = {
        key.decode(errors="replace"): (value or b"").decode(errors="replace") for key, value in info.properties.items()
    }
    fingerprint = texts.get("fp", "")
    if texts.get("v") != VERSION or len(fingerprint) != 64 or any(c not in "0123456789abcdef" for c in fingerprint):
        return None
    addresses = sorted({str(a) for a in info.parsed_addresses() if _usable(str(a))}, key=lambda a: (":" in a, a))
    if not addresses:
        return None
    name = "".join(char if char.isprintable() else "?" for char in texts.get("name", "")[:63]) or "?"
    return Heard(name, tuple(addresses[:8]), info.port, fingerprint)


def _usable(address: str) -> bool:
    """Whether it can be the address of a server beside us."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_multicast or parsed.is_unspecified or parsed.is_link_local)


def _label(name: str) -> str:
    """Return a name as one label of DNS."""
    label = "".join(char if char.isascii() and (char.isalnum() or char == "-") else "-" for char in name)
    return label.strip("-")[:40] or "server"
