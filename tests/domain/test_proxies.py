"""Rules of proxies and device nodes, with the words of a real Incus 6.0.4."""

from __future__ import annotations

import pytest

from incus_actors.domain.proxies import ProxyEnd, check_proxy, listens_inside, nat_target, parse_end
from incus_actors.domain.unix_devices import check_unix_device, paths_of
from incus_actors.errors import BadRequestError

TCP = {"listen": "tcp:127.0.0.1:80", "connect": "tcp:127.0.0.1:80"}
NAT = {"listen": "tcp:192.0.2.1:80", "connect": "tcp:10.0.0.2:80", "nat": "true"}
SOCKET = {"listen": "unix:/tmp/x", "connect": "tcp:127.0.0.1:90"}


def value(option: str, reason: str) -> str:
    return f'Invalid value for device option "{option}": {reason}'


@pytest.mark.parametrize(
    "device",
    [
        TCP,
        SOCKET,
        {**TCP, "listen": "tcp:[::1]:80"},
        {"listen": "tcp:127.0.0.1:80-82,90", "connect": "tcp:127.0.0.1:80"},
        {"listen": "tcp:127.0.0.1:80-82", "connect": "tcp:127.0.0.1:90-92"},
        {"listen": "udp:0.0.0.0:53", "connect": "udp:127.0.0.1:53"},
        {"listen": "unix:@x", "connect": "tcp:127.0.0.1:90"},
        {**SOCKET, "mode": "0666", "uid": "5", "gid": "6"},
        NAT,
        {**NAT, "listen": "udp:192.0.2.1:80-82", "connect": "udp:0.0.0.0:90-92"},
        {**TCP, "bind": "guest", "security.uid": "5", "proxy_protocol": "true", "nat": "false", "user.x": "y"},
    ],
)
def test_proxies_that_are_taken(device):
    check_proxy({"type": "proxy", **device})


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ({}, value("listen", 'Unknown protocol type ""')),
        ({"listen": "tcp:127.0.0.1:80"}, value("connect", 'Unknown protocol type ""')),
        ({**TCP, "listen": "foo:127.0.0.1:80"}, value("listen", 'Unknown protocol type "foo"')),
        ({**TCP, "listen": "tcp:127.0.0.1"}, value("listen", "address 127.0.0.1: missing port in address")),
        ({**TCP, "listen": "tcp:host:80"}, value("listen", 'Not an IP address "host"')),
        ({**TCP, "listen": "tcp:::1:80"}, value("listen", "address ::1:80: too many colons in address")),
        ({**TCP, "listen": "tcp:127.0.0.1:99999"}, value("listen", 'Invalid port number "99999"')),
        ({**TCP, "listen": "tcp:127.0.0.1:82-80"}, value("listen", "End port should be higher than start port")),
        ({**TCP, "listen": "tcp:127.0.0.1:80-80"}, value("listen", "End port should be higher than start port")),
        ({**TCP, "listen": "tcp:127.0.0.1:1-2-3"}, value("listen", 'Invalid port range "1-2-3"')),
        ({**TCP, "listen": "tcp:127.0.0.1:a-b"}, value("listen", 'strconv.ParseInt: parsing "a": invalid syntax')),
        ({**TCP, "listen": "unix:x"}, value("listen", 'Invalid unix socket path "x"')),
        ({**TCP, "bind": "x"}, value("bind", 'Invalid binding side given. Must be "host" or "instance"')),
        ({**TCP, "mode": "x"}, value("mode", "Invalid value for an octal file mode")),
        ({**SOCKET, "mode": "999"}, value("mode", "Invalid value for an octal file mode")),
        ({**SOCKET, "gid": "x"}, value("gid", "Invalid value for a UNIX ID")),
        ({**TCP, "security.uid": "x"}, value("security.uid", "Invalid value for a UNIX ID")),
        ({**TCP, "nat": "x"}, value("nat", 'Invalid value for a boolean "x"')),
        ({**TCP, "foo": "x"}, 'Invalid device option "foo"'),
        (
            {**TCP, "mode": "0666"},
            "Only proxy devices for non-abstract unix sockets can carry uid, gid, or mode properties",
        ),
        (
            {"listen": "tcp:127.0.0.1:80-82", "connect": "tcp:127.0.0.1:90-91"},
            "Mismatch between listen port(s) and connect port(s) count",
        ),
        ({**TCP, "listen": "udp:127.0.0.1:80"}, "Proxying from udp to tcp is not supported by this server"),
        ({**NAT, "bind": "guest"}, "Only host-bound proxies can use NAT"),
        ({**NAT, **SOCKET}, "Proxying unix <-> tcp is not supported when using NAT"),
        ({**NAT, "connect": "udp:10.0.0.2:80"}, "Proxying tcp <-> udp is not supported when using NAT"),
        ({**NAT, "listen": "tcp:0.0.0.0:80"}, 'Cannot listen on wildcard address "0.0.0.0" when in nat mode'),
        ({**NAT, "connect": "tcp:[fd00::1]:80"}, "Cannot mix IP versions between listen and connect in nat mode"),
        ({**NAT, "proxy_protocol": "true"}, "The PROXY header can only be sent to tcp servers in non-nat mode"),
        (
            {**NAT, "uid": "1"},
            "Only proxy devices for non-abstract unix sockets can carry uid, gid, or mode properties",
        ),
    ],
)
def test_proxies_that_are_refused(device, text):
    with pytest.raises(BadRequestError) as caught:
        check_proxy({"type": "proxy", **device})
    assert str(caught.value) == text


NICS = {
    "eth0": {"type": "nic", "ipv4.address": "none"},
    "eth1": {"type": "nic", "ipv4.address": "10.0.0.2", "ipv6.address": "fd00:0::2"},
    "eth2": {"type": "nic", "ipv4.address": "10.0.0.3"},
}


@pytest.mark.parametrize(
    ("connect", "nics", "address"),
    [
        ("tcp:0.0.0.0:80", NICS, "10.0.0.2"),
        ("tcp:10.0.0.3:80", NICS, "10.0.0.3"),
        ("tcp:[::]:80", NICS, "fd00::2"),
        ("tcp:[fd00:0:0::2]:80", NICS, "fd00::2"),
        ("tcp:[::]:80", {}, "Instance has no static IPv6 address assigned to be used as the connect IP"),
        ("tcp:10.0.0.9:80", NICS, 'Connect IP "10.0.0.9" must be one of the instance\'s static IPv4 addresses'),
        ("tcp:127.0.0.1:80", {}, 'Connect IP "127.0.0.1" must be one of the instance\'s static IPv4 addresses'),
    ],
)
def test_where_a_nat_proxy_leads(connect, nics, address):
    try:
        found = nat_target(parse_end(connect), nics)
    except BadRequestError as error:
        found = str(error)
    assert found == address


def test_ends():
    assert parse_end("tcp:[::1]:80-81,90") == ProxyEnd("tcp", "::1", (80, 81, 90))
    assert parse_end("unix:@name") == ProxyEnd("unix", path="@name")
    assert [listens_inside({"bind": side}) for side in ("", "host", "instance", "guest")] == [False, False, True, True]


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ({}, 'Unix device entry is missing the required "source" or "path" property'),
        ({"source": "null"}, value("source", "Path needs to be in /dev")),
        ({"source": "/etc/passwd"}, value("source", "Path needs to be in /dev")),
        ({"source": "/dev/../etc/passwd"}, value("source", "Path needs to be in /dev")),
        ({"path": "/dev/../x"}, value("path", "Must be absolute file path")),
        ({"path": "/dev/x", "major": "x"}, value("major", "Invalid value for a UNIX device number")),
        ({"source": "/dev/null", "mode": "x"}, value("mode", "Invalid value for an octal file mode")),
        ({"source": "/dev/null", "gid": "x"}, value("gid", "Invalid value for a UNIX ID")),
        ({"source": "/dev/null", "required": "x"}, value("required", 'Invalid value for a boolean "x"')),
        ({"source": "/dev/null", "foo": "x"}, 'Invalid device option "foo"'),
    ],
)
def test_device_nodes_that_are_refused(device, text):
    with pytest.raises(BadRequestError) as caught:
        check_unix_device({"type": "unix-char", **device})
    assert str(caught.value) == text


def test_device_nodes_that_are_taken():
    for device in ({"source": "/dev/null"}, {"path": "/dev/x", "major": "1", "minor": "3", "mode": "0660"}):
        check_unix_device({"type": "unix-char", **device})
    assert paths_of({"source": "/dev/a", "path": "/dev/b"}) == ("/dev/a", "/dev/b")
    assert paths_of({"path": "/dev/b"}) == ("/dev/b", "/dev/b")
