"""Checks of what was typed in `admin init`, with the words of the stock client.

Owns looking at this machine (addresses that can be bound, interfaces, block devices, room for a loop file) without
changing it; called by the questions.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from incus_actors.cli.asking import InvalidAnswerError
from incus_actors.errors import BadRequestError
from incus_actors.services import addresses

DEFAULT_PORT = addresses.DEFAULT_PORT
_GIB = 1 << 30


def own_address() -> str:
    """Return the address from which this machine would talk to the world, or its first one, or ""."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing: only asks the kernel for the way
            chosen = str(asking.getsockname()[0])
        except OSError:
            chosen = ""
    if chosen and not ipaddress.ip_address(chosen).is_loopback:
        return chosen
    from incus_actors.services.interfaces import global_addresses

    return next(iter(global_addresses()), "")


def check_cluster_address(text: str, configured: str = "") -> None:
    """Raise InvalidAnswerError unless other members could reach us there and we can listen there.

    `configured` is where our daemon listens already.
    """
    host, port = _split(text)
    if not host or host == "*" or host in ("0.0.0.0", "::"):  # noqa: S104
        raise InvalidAnswerError("Invalid IP address or DNS name")
    if configured and addresses.normalise(configured) == addresses.join_host(host, port):
        return
    check_bind(host, port)


def _split(text: str) -> tuple[str, int]:
    try:
        return addresses.split_host_port(text)
    except BadRequestError:
        raise InvalidAnswerError("Invalid IP address or DNS name") from None


def check_bind(host: str, port: int) -> None:
    """Raise InvalidAnswerError with Go's words if a listener could not be opened."""
    shown = addresses.join_host(host, port)
    where = f'Can\'t bind address "{shown}": listen tcp'
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise InvalidAnswerError(f"{where}: lookup {host}: no such host") from None
    family, _, _, _, target = found[0]
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(target)
            trial.listen(1)
        except OSError as problem:
            reason = os.strerror(problem.errno or 0).lower()
            there = addresses.join_host(str(target[0]), port)
            raise InvalidAnswerError(f"{where} {there}: bind: {reason}") from None


def check_member_name(text: str) -> None:
    """Raise InvalidAnswerError for what no member can be called."""
    if not text or len(text) > 255 or text in ("none", ".", "..") or any(ord(char) < 32 for char in text):
        raise InvalidAnswerError("Invalid server name")


def check_block_device(text: str) -> None:
    """Raise InvalidAnswerError if it is no block device."""
    try:
        if stat.S_ISBLK(Path(text).stat().st_mode):
            return
    except (OSError, ValueError):
        pass
    raise InvalidAnswerError(f'"{text}" is not a block device')


def loop_default_gib(directory: Path) -> int:
    """Return a fifth of the disk that holds `directory`, from 5 to 30 GiB."""
    usage = os.statvfs(directory)
    return min(max(usage.f_frsize * usage.f_blocks // _GIB // 5, 5), 30)


def loop_size(text: str) -> int:
    """Return the size in GiB that was typed ("5" or "5GiB"). Raises InvalidAnswerError."""
    number = text.removesuffix("GiB")
    if not re.fullmatch(r"[-+]?[0-9]+", number):
        raise InvalidAnswerError(f'strconv.ParseInt: parsing "{number}": invalid syntax')
    if int(number) < 1:
        raise InvalidAnswerError("Minimum size is 1GiB")
    return int(number)


def check_interface_name(text: str) -> None:
    """Raise InvalidAnswerError for what no bridge can be called."""
    if len(text) < 2:
        raise InvalidAnswerError("Network interface is too short (minimum 2 characters)")
    if len(text) > 15:
        raise InvalidAnswerError("Network interface is too long (maximum 15 characters)")
    if text in (".", "..") or not re.fullmatch(r"[-_a-zA-Z0-9.]+", text):
        raise InvalidAnswerError("Network interface contains invalid characters")


def interface_exists(name: str) -> bool:
    """Return whether this machine has it."""
    return bool(name) and "/" not in name and Path("/sys/class/net", name).exists()


def is_bridge(name: str) -> bool:
    """Return whether an interface is a bridge."""
    return Path("/sys/class/net", name, "bridge").is_dir()


def check_subnet(version: int) -> Callable[[str], None]:
    """Return a check for "auto", "none" or an address with its prefix."""

    def check(text: str) -> None:
        if text in ("auto", "none"):
            return
        try:
            given = ipaddress.ip_interface(text)
        except ValueError:
            raise InvalidAnswerError(f"invalid CIDR address: {text}") from None
        if "/" not in text:
            raise InvalidAnswerError(f"invalid CIDR address: {text}")
        if given.version != version:
            raise InvalidAnswerError(f'Not an IPv{version} address "{given.ip}"')
        if given.ip == given.network.network_address and given.network.num_addresses > 1:
            raise InvalidAnswerError(f'Not a usable IPv{version} address "{text}"')

    return check


def in_user_namespace() -> bool:
    """Return whether our ids are mapped: containers can then not have ids of their own."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except OSError:
        return False
