"""Changes the network interfaces of this machine through netlink (pyroute2), one request after the other.

Owns no state: every request says what shall be, and what is there already stays untouched. Started by
drivers/network_helper.py and kept for a while (pyroute2 takes 0.2 s and 20 MB to load, which the daemon shall not pay);
ends when the daemon closes its socket. Must never change an interface that does not carry the daemon's mark.
"""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Answer = dict[str, Any]

PROTO_BOOT = 3
PROTO_STATIC = 4
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
IFF_UP = 1
TC_H_ROOT = 0xFFFFFFFF
TBF_HANDLE = 0x10000


class Refused(Exception):  # noqa: N818 - an answer
    """What the user reads."""


class Links:
    """The operations; `ip` is a pyroute2.IPRoute of the daemon's network namespace."""

    def __init__(self, ip: Any) -> None:
        self.ip = ip

    # -- looking ------------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Any:
        """Return the link message of an interface, None if there is none."""
        found = self.ip.link_lookup(ifname=name)
        return self.ip.get_links(found[0])[0] if found else None

    def need(self, name: str) -> Any:
        """Return the link message of an interface that must exist."""
        link = self.find(name)
        if link is None:
            raise Refused(f'Network interface "{name}" not found')
        return link

    def owned(self, request: Request) -> Answer:
        """Return the names of all interfaces with our mark."""
        names = [
            link.get_attr("IFLA_IFNAME")
            for link in self.ip.get_links()
            if (link.get_attr("IFLA_IFALIAS") or "") == request["mark"]
        ]
        return {"names": sorted(names)}

    def exists(self, request: Request) -> Answer:
        """Return whether there is an interface of this name."""
        return {"exists": self.find(request["name"]) is not None}

    # -- bridges ------------------------------------------------------------------------------------------------------

    def bridge_up(self, request: Request) -> Answer:
        """Make a bridge what the request says; return whether it is new, and what could not be done."""
        name, mark = request["name"], request["mark"]
        link = self.find(name)
        created = link is None
        if link is None:
            link = self._new_bridge(request)
        elif link.get_attr("IFLA_IFALIAS") != mark:
            raise Refused(f'Network interface "{name}" already exists')
        index = link["index"]
        try:
            self._set_link(link, request)
            self._sysctls(request)
            self._addresses(index, request["addresses"])
            self._routes(index, request["routes"])
            problems = self._external(index, request)
        except Exception:
            if created:  # nothing half made stays behind
                self.ip.link("del", index=index)
            raise
        return {"created": created, "problems": problems}

    def _new_bridge(self, request: Request) -> Any:
        """Under a name of our own until it carries our mark: a kill in between leaves nothing that looks foreign."""
        name, temporary = request["name"], request["temporary"]
        for index in self.ip.link_lookup(ifname=temporary):
            self.ip.link("del", index=index)
        self.ip.link("add", ifname=temporary, kind="bridge", mtu=request["mtu"], address=request["hwaddr"])
        index = self.ip.link_lookup(ifname=temporary)[0]
        self.ip.link("set", index=index, ifalias=request["mark"])
        try:
            self.ip.link("set", index=index, ifname=name)
        except Exception:
            self.ip.link("del", index=index)
            raise
        return self.ip.get_links(index)[0]

    def _set_link(self, link: Any, request: Request) -> None:
        index = link["index"]
        if link.get_attr("IFLA_MTU") != request["mtu"]:
            self.ip.link("set", index=index, mtu=request["mtu"])
        if request["fixed_hwaddr"] and link.get_attr("IFLA_ADDRESS") != request["hwaddr"]:
            self.ip.link("set", index=index, address=request["hwaddr"])
        conf = f"conf/{request['name']}"
        write_sysctl("ipv6", f"{conf}/disable_ipv6", "0" if request["ipv6"] else "1")
        # No duplicate address detection: without a port the bridge has no carrier and would never end it.
        write_sysctl("ipv6", f"{conf}/accept_dad", "0")
        write_sysctl("ipv6", f"{conf}/autoconf", "0")
        write_sysctl("ipv6", f"{conf}/accept_ra", "0")  # instances must not tell the host its routes
        if not link["flags"] & IFF_UP:
            self.ip.link("set", index=index, state="up")

    def _sysctls(self, request: Request) -> None:
        if request["route4"]:
            write_sysctl("ipv4", "ip_forward", "1")
        if request["route6"]:
            for directory in Path("/proc/sys/net/ipv6/conf").iterdir():
                # A host that forwards ignores router advertisements unless told 2: its own uplink must not suffer.
                if read_sysctl("ipv6", f"conf/{directory.name}/accept_ra") == "1":
                    write_sysctl("ipv6", f"conf/{directory.name}/accept_ra", "2")
            write_sysctl("ipv6", "conf/all/forwarding", "1")

    def _addresses(self, index: int, wanted: list[str]) -> None:
        present = {
            f"{a.get_attr('IFA_LOCAL') or a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}"
            for a in self.ip.get_addr(index=index)
            if a["scope"] == RT_SCOPE_UNIVERSE
        }
        for address in wanted:
            if address not in present:
                self._address("add", index, address)
        for address in present - set(wanted):
            self._address("del", index, address)

    def _address(self, verb: str, index: int, text: str) -> None:
        address, _, prefix = text.partition("/")
        self.ip.addr(verb, index=index, address=address, prefixlen=int(prefix))

    def _present_routes(self, index: int, protocol: int) -> set[str]:
        return {
            f"{r.get_attr('RTA_DST')}/{r['dst_len']}"
            for r in self.ip.get_routes(oif=index)
            if r["proto"] == protocol and r.get_attr("RTA_DST")
        }

    def _routes(self, index: int, wanted: list[str]) -> None:
        present = self._present_routes(index, PROTO_STATIC)
        for route in wanted:
            if route not in present:
                self._route("add", index, route, "static")
        for route in present - set(wanted):
            self._route("del", index, route, "static")

    def _route(self, verb: str, index: int, route: str, protocol: str) -> None:
        scope = {} if ":" in route else {"scope": RT_SCOPE_LINK}
        self.ip.route(verb, dst=route, oif=index, proto=protocol, **scope)

    def _external(self, index: int, request: Request) -> list[str]:
        """Put other interfaces into the bridge, and take out those that were put in by us and are not named now."""
        problems = []
        for name in request["release"]:
            self._release(index, name)
        for item in request["external"]:
            words = item.split("/")
            name = words[0]
            if len(words) == 3 and self.find(name) is None:
                self.vlan_up({"name": name, "parent": words[1], "vlan": int(words[2]), "mark": request["mark"]})
            link = self.find(name)
            if len(words) == 3 and link is not None and not _is_vlan(link):
                raise Refused(f'External interface "{name}" already in use')
            if link is None:
                problems.append(f'External interface "{name}" of network "{request["name"]}" not found')
                continue
            if link.get_attr("IFLA_MASTER") == index:
                continue
            if any(a["scope"] == RT_SCOPE_UNIVERSE for a in self.ip.get_addr(index=link["index"])):
                raise Refused("Only unconfigured network interfaces can be bridged")
            self.ip.link("set", index=link["index"], master=index, state="up")
        return problems

    def _release(self, index: int, item: str) -> None:
        link = self.find(item.split("/")[0])
        if link is not None and link.get_attr("IFLA_MASTER") == index:
            self.ip.link("set", index=link["index"], master=0)

    def bridge_down(self, request: Request) -> Answer:
        """Remove a bridge of ours; nothing happens if there is none, or one of somebody else."""
        for index in self.ip.link_lookup(ifname=request["temporary"]):
            self.ip.link("del", index=index)
        link = self.find(request["name"])
        if link is not None and link.get_attr("IFLA_IFALIAS") == request["mark"]:
            for item in request["release"]:
                self._release(link["index"], item)
            self.ip.link("del", index=link["index"])
        return {}

    # -- parents ------------------------------------------------------------------------------------------------------

    def vlan_up(self, request: Request) -> Answer:
        """Make the VLAN interface of a parent, unless it is there; return whether we made it."""
        if self.find(request["name"]) is not None:
            return {"created": False}
        parent = self.find(request["parent"])
        if parent is None:
            raise Refused(f'Parent interface "{request["parent"]}" not found')
        self.ip.link("add", ifname=request["name"], kind="vlan", link=parent["index"], vlan_id=request["vlan"])
        index = self.ip.link_lookup(ifname=request["name"])[0]
        self.ip.link("set", index=index, ifalias=request["mark"])
        self.ip.link("set", index=index, state="up")
        return {"created": True}

    def link_down(self, request: Request) -> Answer:
        """Remove an interface of ours; nothing happens if there is none, or one of somebody else."""
        link = self.find(request["name"])
        if link is not None and link.get_attr("IFLA_IFALIAS") == request["mark"]:
            self.ip.link("del", index=link["index"])
        return {}

    # -- nics of running containers -----------------------------------------------------------------------------------

    def nic_pair(self, request: Request) -> Answer:
        """Make a pair of interfaces and put its end on the host into the bridge; what an earlier start left goes."""
        for name in (request["host_name"], request["peer"]):
            for index in self.ip.link_lookup(ifname=name):
                self.ip.link("del", index=index)
        self._add_pair(request, self._parent(request), _wanted(request))
        return {}

    def _parent(self, request: Request) -> int:
        if not request["parent"]:
            return 0
        found = self.find(request["parent"])
        if found is None:
            mark = '"' if request["kind"] == "bridged" else "'"  # as Incus has it
            raise Refused(f"Parent device {mark}{request['parent']}{mark} doesn't exist")
        return int(found["index"])

    def nic_add(self, request: Request) -> Answer:
        """Put an interface into the network namespace of a process: one end of a pair, a macvlan or the parent itself."""
        kind, parent, wanted = request["kind"], self._parent(request), _wanted(request)
        if kind == "physical":
            self._move_in(parent, request, wanted)
        elif kind == "macvlan":
            self.ip.link(
                "add",
                ifname=request["host_name"],
                kind="macvlan",
                link=parent,
                macvlan_mode=request["mode"] or "bridge",
                **wanted,
            )
            self._in_or_gone(self.ip.link_lookup(ifname=request["host_name"])[0], request, {})
        else:
            self._in_or_gone(self._add_pair(request, parent, wanted), request, {})
        return {}

    def _add_pair(self, request: Request, parent: int, wanted: dict[str, Any]) -> int:
        """Return the index of the end that is not for the host."""
        end, peer = request["host_name"], request["peer"]
        if self.find(end) is not None:
            raise Refused(f'Failed to create the veth interfaces "{end}" and "{peer}": File exists')
        self.ip.link("add", ifname=end, kind="veth", peer={"ifname": peer, **wanted})
        index = self.ip.link_lookup(ifname=end)[0]
        try:
            if request["mtu"]:
                self.ip.link("set", index=index, mtu=request["mtu"])
            if request["queue"]:
                for one in (index, self.ip.link_lookup(ifname=peer)[0]):
                    self.ip.link("set", index=one, txqlen=request["queue"])
            if parent:
                self.ip.link("set", index=index, master=parent)
            self.ip.link("set", index=index, state="up")
        except Exception:
            self.ip.link("del", index=index)
            raise
        return int(self.ip.link_lookup(ifname=peer)[0])

    def _in_or_gone(self, index: int, request: Request, wanted: dict[str, Any]) -> None:
        """Move an interface that we made; nothing of it stays if it can't be moved."""
        try:
            self._move_in(index, request, wanted)
        except Exception:
            self.ip.link("del", index=index)
            raise

    def _move_in(self, index: int, request: Request, wanted: dict[str, Any]) -> None:
        with inside(request["pid"]) as there:
            if there.link_lookup(ifname=request["name"]):
                raise Refused(f'"{request["name"]}": File exists')
        self.ip.link("set", index=index, net_ns_pid=request["pid"], ifname=request["name"])
        with inside(request["pid"]) as there:
            found = there.link_lookup(ifname=request["name"])[0]
            there.link("set", index=found, state="up", **wanted)

    def nic_remove(self, request: Request) -> Answer:
        """Take an interface out again; nothing happens if it is not there. The parent itself gets its own name back."""
        if request["kind"] not in ("physical", "macvlan"):
            for index in self.ip.link_lookup(ifname=request["host_name"]):
                self.ip.link("del", index=index)
            return {}
        home = os.getpid()
        with inside(request["pid"]) as there:
            for index in there.link_lookup(ifname=request["name"]):
                if request["kind"] == "macvlan":
                    there.link("del", index=index)
                else:
                    there.link("set", index=index, state="down")
                    _restore(there, index, request)
                    there.link("set", index=index, net_ns_pid=home, ifname=request["parent"])
        return {}

    def link_facts(self, request: Request) -> Answer:
        """Return MAC address and MTU of an interface of the host, nothing if there is none."""
        link = self.find(request["name"])
        if link is None:
            return {"hwaddr": "", "mtu": 0}
        return {"hwaddr": link.get_attr("IFLA_ADDRESS") or "", "mtu": link.get_attr("IFLA_MTU") or 0}

    def link_restore(self, request: Request) -> Answer:
        """Make an interface that liblxc has given back what it was; nothing happens if it did not come back."""
        link = self.find(request["parent"])
        if link is not None:
            _restore(self.ip, link["index"], request)
        return {}

    def nic_tune(self, request: Request) -> Answer:
        """Set the rate towards the instance (bytes per second, 0: none) and the routes to what is behind it."""
        index = self.need(request["host_name"])["index"]
        limited = any(q.get_attr("TCA_KIND") == "tbf" for q in self.ip.get_qdiscs(index=index))
        if limited:
            self.ip.tc("del", index=index, handle=TBF_HANDLE, parent=TC_H_ROOT)
        rate = request["rate_bytes"]
        if rate:
            burst = max(rate // 100, 16384)
            self.ip.tc("add", "tbf", index, TBF_HANDLE, parent=TC_H_ROOT, rate=rate, burst=burst, latency="100ms")
        if request["bridge"]:
            self.ip.brport("set", index=index, isolated=int(request["isolated"]))
            self._nic_routes(self.need(request["bridge"])["index"], request)
        else:
            self._routes(index, request["routes"])
        return {}

    def nic_unroute(self, request: Request) -> Answer:
        """Remove the routes of a nic over its bridge, which may be gone."""
        link = self.find(request["bridge"])
        if link is not None:
            self._nic_routes(link["index"], request)
        return {}

    def _nic_routes(self, index: int, request: Request) -> None:
        """Those of nics differ from those of the network by their protocol, as in Incus."""
        present = self._present_routes(index, PROTO_BOOT)
        for route in request["routes"]:
            if route not in present:
                self._route("add", index, route, "boot")
        for route in request["gone"]:
            if route in present:
                self._route("del", index, route, "boot")


def _restore(ip: Any, index: int, request: Request) -> None:
    was = {key: value for key, value in request["was"].items() if value}
    if was:
        ip.link("set", index=index, **was)


def _is_vlan(link: Any) -> bool:
    info = link.get_attr("IFLA_LINKINFO")
    return info is not None and info.get_attr("IFLA_INFO_KIND") == "vlan"


def _wanted(request: Request) -> dict[str, Any]:
    wanted = {"address": request["hwaddr"], "mtu": request["mtu"]}
    return {key: value for key, value in wanted.items() if value}


@contextmanager
def inside(pid: int) -> Iterator[Any]:
    """Give a pyroute2.IPRoute of the network namespace of a process. Only a thread that ends goes in: it opens the
    socket, and a socket stays in the namespace that it was opened in."""
    from pyroute2.iproute.linux import NetNS

    with NetNS(f"/proc/{pid}/ns/net", flags=0) as there:
        yield there


def read_sysctl(family: str, path: str) -> str:
    """Return a value, "" if there is none."""
    try:
        return Path("/proc/sys/net", family, path).read_text().strip()
    except OSError:
        return ""


def write_sysctl(family: str, path: str, value: str) -> None:
    """Set a value unless it is set already; a kernel without it (no IPv6) is fine."""
    if read_sysctl(family, path) not in ("", value):
        Path("/proc/sys/net", family, path).write_text(value)


def read_exactly(descriptor: int, size: int) -> bytes:
    """Return `size` bytes, fewer at the end of file."""
    data = b""
    while len(data) < size and (chunk := os.read(descriptor, size - len(data))):
        data += chunk
    return data


def receive(control: int) -> dict[str, str]:
    """Return the next message; empty at the end of the conversation."""
    head = read_exactly(control, 4)
    if len(head) < 4:
        return {}
    parts = read_exactly(control, int.from_bytes(head, "big")).decode().split("\0")
    return dict(zip(parts[::2], parts[1::2], strict=True))


def send(control: int, **fields: str) -> None:
    """Send one message."""
    body = "\0".join(part for item in fields.items() for part in item).encode()
    data = len(body).to_bytes(4, "big") + body
    while data:
        data = data[os.write(control, data) :]


def handle(operations: dict[str, Callable[[Request], Answer]], message: dict[str, str]) -> dict[str, str]:
    """Do one request; an error is an answer."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        return {"answer": json.dumps(operations[message["call"]](json.loads(message["data"])))}
    except Refused as refused:
        return {"error": str(refused)}
    except NetlinkError as error:
        return {"error": f"{message['call']}: {error.args[1] if len(error.args) > 1 else error}"}
    except (OSError, KeyError, ValueError, TypeError) as error:
        return {"error": f"{message['call']}: {type(error).__name__}: {error}"}


def main() -> None:
    """Run `<directory of site-packages> <socket>`."""
    directory, number = sys.argv[1:3]
    sys.path.append(directory)
    control = int(number)
    os.set_inheritable(control, False)
    # The package's own __init__ imports all that there is of it, which takes twice as long as the one module needed here.
    package = types.ModuleType("pyroute2")
    package.__path__ = [f"{directory}/pyroute2"]
    sys.modules["pyroute2"] = package
    from pyroute2.iproute.linux import IPRoute

    with IPRoute() as ip:
        links = Links(ip)
        operations = {
            name: getattr(links, name)
            for name in (
                *("owned", "exists", "bridge_up", "bridge_down", "vlan_up", "link_down"),
                *("nic_pair", "nic_add", "nic_remove", "nic_tune", "nic_unroute"),
                *("link_facts", "link_restore"),
            )
        }
        while message := receive(control):
            send(control, **handle(operations, message))


if __name__ == "__main__":
    main()
