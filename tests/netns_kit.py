"""A network namespace for one test: this very thread, and whatever it starts, is inside."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000

needs_network = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(name) for name in ("ip", "nft", "dnsmasq")),
    reason="needs root, iproute2, nftables and dnsmasq-base",
)


def ip(*arguments: str, check: bool = True) -> str:
    """Run `ip` and return what it says."""
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True, timeout=30).stdout


def _enter(path: str) -> None:
    with open(path, "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """Go into a fresh namespace with a loopback interface; its name comes back. Its end removes all that is in it."""
    name = f"iat{secrets.token_hex(3)}"
    ip("netns", "add", name)
    try:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _enter(f"/run/netns/{name}")
        try:
            ip("link", "set", "lo", "up")
            yield name
        finally:
            if ctypes.CDLL(None, use_errno=True).setns(before, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "going back to the namespace of the tests")
            os.close(before)
    finally:
        ip("netns", "del", name)


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that everybody may pass (dnsmasq is "nobody"), unlike pytest's."""
    directory = Path(tempfile.mkdtemp(prefix="iat-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def station(bridge: str, hwaddr: str = "10:66:6a:00:00:05") -> Iterator[str]:
    """A namespace with one end of a veth pair, eth0, whose other end is in `bridge`."""
    name = f"iat{secrets.token_hex(3)}"
    ip("netns", "add", name)
    try:
        ip("link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "address", hwaddr, "netns", name)
        ip("link", "set", f"v{name}", "master", bridge, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", "eth0", "up")
        yield name
    finally:
        ip("link", "del", f"v{name}", check=False)
        ip("netns", "del", name)


def inside(station_name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a station."""
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{station_name}", "--", *argv],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
