"""The network interfaces of an instance, asked of the kernel inside the instance's network namespace.

Owns one netlink socket per running instance: a throw-away thread enters the namespace, opens it and ends, so
that a look costs two small messages and no process. Called by the instance drivers' `state`; must never let a
thread that changed its namespace go on to other work.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from incus_actors.drivers.base import NetworkAddress, NetworkInterface

_CLONE_NEWNET = 0x40000000
_RTM_GETLINK, _RTM_GETADDR = 18, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_STATS64, _IFLA_LINK_NETNSID = 1, 3, 4, 5, 23, 37
_IFLA_LINKINFO, _INFO_KIND = 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP, _IFF_LOOPBACK, _IFF_BROADCAST, _IFF_POINTOPOINT = 1, 8, 2, 16
_HEADER = struct.Struct("=IHHII")
_SCOPES = {0: "global", 253: "link", 254: "local", 200: "global"}
_COUNTERS = ("packets_received", "packets_sent", "bytes_received", "bytes_sent", "errors_received", "errors_sent")
_DROPPED = ("packets_dropped_inbound", "packets_dropped_outbound")


def in_namespace(path: str, kind: int, action: Callable[[], int]) -> int:
    """Run `action` in a thread of its own inside a namespace; return what it returns. Raises OSError."""
    outcome: list[int | BaseException] = []

    def enter() -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, kind) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), path)
            finally:
                os.close(descriptor)
            outcome.append(action())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=enter, name="namespace")
    thread.start()
    thread.join()
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


class NamespaceNetwork:
    """Looks into the network namespace of a process. Close it when the process ends: it keeps the namespace."""

    def __init__(self, pid: int) -> None:
        def open_socket() -> int:
            return socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            ).detach()

        self._socket = socket.socket(fileno=in_namespace(f"/proc/{pid}/ns/net", _CLONE_NEWNET, open_socket))
        self._socket.settimeout(0.25)  # the kernel answers at once; this is only against surprises
        self._sequence = 0

    def close(self) -> None:
        """Let go of the namespace."""
        self._socket.close()

    def interfaces(self) -> dict[str, NetworkInterface]:
        """Return all interfaces by name. Raises OSError."""
        addresses: dict[int, list[NetworkAddress]] = {}
        for body in self._dump(_RTM_GETADDR, 8):
            index, address = _parse_address(body)
            addresses.setdefault(index, []).append(address)
        found = {}
        for body in self._dump(_RTM_GETLINK, 16):
            index, interface = _parse_link(body)
            found[interface.name] = NetworkInterface(
                interface.name,
                tuple(addresses.get(index, ())),
                interface.counters,
                interface.hwaddr,
                interface.host_name,
                interface.mtu,
                interface.state,
                interface.type,
            )
        return found

    def _dump(self, kind: int, header_bytes: int) -> Iterator[bytes]:
        self._sequence += 1
        return dump(self._socket, self._sequence, kind, header_bytes)


def dump(kernel: socket.socket, sequence: int, kind: int, header_bytes: int) -> Iterator[bytes]:
    """Yield the bodies of all messages that answer a dump request. Raises OSError."""
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    size = _HEADER.size + header_bytes
    kernel.send(_HEADER.pack(size, kind, flags, sequence, 0) + bytes(header_bytes))
    while True:
        data = kernel.recv(1 << 17)
        while len(data) >= _HEADER.size:
            length, answer, _, answered, _ = _HEADER.unpack_from(data)
            if length < _HEADER.size or length > len(data):
                raise OSError(f"netlink: a message of {length} bytes")
            if answered == sequence:
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    number = -int(struct.unpack_from("=i", data, _HEADER.size)[0])
                    raise OSError(number, os.strerror(number))
                yield data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]


def attributes_of(data: bytes) -> dict[int, bytes]:
    """Return the attributes behind a message's header by number."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _parse_address(body: bytes) -> tuple[int, NetworkAddress]:
    family, prefix, _, scope, index = struct.unpack_from("=BBBBI", body)
    attributes = attributes_of(body[8:])
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
    text = socket.inet_ntop(family, raw) if len(raw) in {4, 16} else ""
    kind = "inet" if family == socket.AF_INET else "inet6"
    return index, NetworkAddress(kind, text, str(prefix), _SCOPES.get(scope, "global"))  # type: ignore[arg-type]


def _parse_link(body: bytes) -> tuple[int, NetworkInterface]:
    index, flags = struct.unpack_from("=iI", body, 4)
    attributes = attributes_of(body[16:])
    name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    statistics = attributes.get(_IFLA_STATS64, b"")
    values = struct.unpack_from("=8Q", statistics) if len(statistics) >= 64 else (0,) * 8
    counters = dict(zip(_COUNTERS + _DROPPED, values, strict=True))
    hwaddr = attributes.get(_IFLA_ADDRESS, b"")
    host_name = ""
    made_as = attributes_of(attributes.get(_IFLA_LINKINFO, b"")).get(_INFO_KIND, b"")
    if made_as.startswith(b"veth") and _IFLA_LINK in attributes and _IFLA_LINK_NETNSID in attributes:
        with contextlib.suppress(OSError):  # the other end may be in a namespace that is not ours
            host_name = socket.if_indextoname(int.from_bytes(attributes[_IFLA_LINK], "little"))
    kind = "loopback" if flags & _IFF_LOOPBACK else "broadcast" if flags & _IFF_BROADCAST else "unknown"
    if flags & _IFF_POINTOPOINT:
        kind = "point-to-point"
    return index, NetworkInterface(
        name,
        (),
        counters,
        ":".join(f"{byte:02x}" for byte in hwaddr) if any(hwaddr) else "",
        host_name if kind != "loopback" else "",
        int.from_bytes(attributes.get(_IFLA_MTU, b""), "little"),
        "up" if flags & _IFF_UP else "down",
        kind,
    )
