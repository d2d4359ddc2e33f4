"""Where the REST API can be reached: the unix socket and the HTTPS addresses.

Owns the listening sockets and the aiohttp server behind them. Opened and changed by the composition root when
configuration or certificates change; it must never drop an open connection because of such a change.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from incus_actors.errors import BadRequestError, MemberError
from incus_actors.security.tls import TrustAnyClientContext
from incus_actors.tasks import spawn

_log = logging.getLogger(__name__)

DEFAULT_PORT = 8443
METRICS_PORT = 9100
BACKLOG = 1024
KEEPALIVE_S = 90.0  #: longer than members keep idle connections to us (gateway/forwarding.py)
HANDSHAKE_S = 10.0
TLS_CLOSE_S = 3.0
LISTEN_AGAIN_S = 1.0
UNIX_PATH_MAX = 107

Address = tuple[str, int]  #: ("", port) is every address of this machine


def parse_listen_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """Return host and port of "host:port", "[v6]:port", ":port" or "host". Raises BadRequestError."""
    host, separator, port = text.rpartition(":")
    if not separator or (":" in host and not host.startswith("[")) or text.endswith("]"):
        host, port = text, str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise BadRequestError(f'Invalid listen address "{text}"')
    return ("" if host in ("", "::", "*") else host, int(port))


def plan_addresses(*configured: str, default_port: int = DEFAULT_PORT) -> list[Address]:
    """Return what to listen on for core.https_address and cluster.https_address: no address twice, and none that
    a wildcard on the same port covers. Empty texts count for nothing. Raises BadRequestError."""
    wanted = list(dict.fromkeys(parse_listen_address(text, default_port) for text in configured if text))
    everywhere = {port for host, port in wanted if host == ""}
    everywhere_v4 = {port for host, port in wanted if host == "0.0.0.0"}  # noqa: S104 - compared, not bound
    kept = []
    for host, port in wanted:
        v4 = ":" not in host
        covered = host != "" and (port in everywhere or (v4 and host != "0.0.0.0" and port in everywhere_v4))  # noqa: S104
        if not covered:
            kept.append((host, port))
    return kept


def format_address(address: Address) -> str:
    """Return "host:port", with brackets around IPv6."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Listening(socket.socket):
    """A listening socket that says when it is none any more: the kernel closes it for an administrator (`ss -K`).

    asyncio would ask it for connections for ever, as fast as it can, and log each time that it can't.
    """

    def __init__(self, listening: socket.socket, on_closed: Callable[[], None]) -> None:
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self.setblocking(False)
        self._on_closed = on_closed

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection. Raises OSError; BlockingIOError if there is none, or there will be none."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._on_closed()
            raise BlockingIOError(errno.EAGAIN, "no connection will come here any more") from error


def _tcp_socket(address: Address) -> socket.socket:
    host, port = address
    if host == "" and socket.has_dualstack_ipv6():
        found = socket.create_server(("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    else:
        family = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]  # noqa: S104
        found = socket.create_server((host, port), family=family, backlog=BACKLOG)
    # inherited by the connections: a peer that lost its power is noticed within half a minute, not in two hours
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def unix_socket(path: Path, group: str | None) -> socket.socket:
    """Return a listening socket at `path`, mode 0660, of `group`. A stale file is replaced.

    Raises MemberError when a daemon answers there, the group is unknown, or the path is too long.
    """
    if len(os.fsencode(path)) > UNIX_PATH_MAX - 4:
        raise MemberError(f"The path of the unix socket is too long: {path}", remedy="choose a shorter INCUS_DIR")
    if _answers(path):
        raise MemberError(f"Another daemon is already listening on {path}")
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        previous = os.umask(0o177)  # never open for others, not even before chmod
        try:
            found.bind(str(temporary))
        finally:
            os.umask(previous)
        if group is not None:
            os.chown(temporary, -1, _group_id(group))
        temporary.chmod(0o660)
        found.listen(BACKLOG)
        found.setblocking(False)
        temporary.replace(path)
    except BaseException:
        found.close()
        temporary.unlink(missing_ok=True)
        raise
    return found


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise MemberError(f'Group "{group}" doesn\'t exist', remedy="create it or give another --group") from None


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.ETIMEDOUT)  # its queue is full: somebody is there
    return True


class Listeners:
    """The listeners of one daemon. `certificate` and `key` are the files that HTTPS shows at first."""

    def __init__(self, app: web.Application, *, default_port: int = DEFAULT_PORT) -> None:
        self._default_port = default_port
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            auto_decompress=False,
            shutdown_timeout=2.0,
            handler_cancellation=False,
        )
        self._unix: asyncio.Server | None = None
        self._unix_path: Path | None = None
        self._https: dict[Address, asyncio.Server] = {}
        self._changing = asyncio.Lock()
        self._context: TrustAnyClientContext | None = None

    async def start(self) -> None:
        """Make the server; nothing listens yet."""
        await self._runner.setup()

    async def open_unix(self, path: Path, *, group: str | None = None, passed: socket.socket | None = None) -> None:
        """Listen at `path`, or on the socket that systemd passed. Raises MemberError, OSError."""
        sock = passed
        if sock is None:
            sock = unix_socket(path, group)
            self._unix_path = path
        self._unix = await asyncio.get_running_loop().create_unix_server(self._protocol, sock=sock)

    def _protocol(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None:
            raise RuntimeError("the listeners are not started")
        return server()

    def use_certificate(self, certificate_file: Path, key_file: Path) -> None:
        """Show this certificate from the next handshake on; open connections go on undisturbed."""
        if self._context is None:
            self._context = TrustAnyClientContext(certificate_file, key_file)
        else:
            self._context.reload(certificate_file, key_file)

    @property
    def https_addresses(self) -> list[str]:
        """What HTTPS listens on now."""
        return [format_address(address) for address in self._https]

    async def set_https(self, *configured: str) -> None:
        """Listen on exactly these addresses (of core.https_address and cluster.https_address).

        Raises MemberError when one can't be bound; then it listens where it did before. Connections stay open.
        """
        wanted = plan_addresses(*configured, default_port=self._default_port)
        async with self._changing:
            await self._set_https(wanted)

    async def _set_https(self, wanted: list[Address]) -> None:
        removed = {address: server for address, server in self._https.items() if address not in wanted}
        for server in removed.values():
            server.close()  # first: a wildcard and an address on the same port exclude each other
        opened: dict[Address, asyncio.Server] = {}
        try:
            for address in wanted:
                if address not in self._https:
                    opened[address] = await self._listen(address)
        except OSError as error:
            for server in opened.values():
                server.close()
            for previous in removed:
                self._https[previous] = await self._listen(previous)
            text = os.strerror(error.errno).lower() if error.errno else str(error)
            raise MemberError(f"Failed to listen on {format_address(address)}: {text}") from error
        self._https = {a: opened.get(a) or self._https[a] for a in wanted}

    async def _listen(self, address: Address) -> asyncio.Server:
        if self._context is None:
            raise RuntimeError("use_certificate comes before set_https")
        return await asyncio.get_running_loop().create_server(
            self._protocol,
            sock=_Listening(_tcp_socket(address), lambda: self._closed_for_us(address)),
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_S,
            ssl_shutdown_timeout=TLS_CLOSE_S,
        )

    def _closed_for_us(self, address: Address) -> None:
        server = self._https.get(address)
        if server is None:
            return  # it is being opened: its next attempt to accept finds it here
        _log.error("The kernel has closed the listener on %s", format_address(address))
        server.close()
        spawn(self._listen_again(address, server), name=f"listen on {format_address(address)} again")

    async def _listen_again(self, address: Address, closed: asyncio.Server) -> None:
        """Until it works, or nothing shall listen there any more."""
        while self._https.get(address) is closed:
            async with self._changing:
                try:
                    server = await self._listen(address)
                except OSError as error:
                    _log.warning("Failed to listen on %s again: %s", format_address(address), error)
                else:
                    if self._https.get(address) is closed:
                        self._https[address] = server
                        _log.warning("Listening on %s again", format_address(address))
                    else:  # meanwhile told to stop
                        server.close()
                    return
            await asyncio.sleep(LISTEN_AGAIN_S)

    def stop_accepting(self) -> None:
        """Close the listening sockets; open connections go on."""
        for server in (*self._https.values(), *([self._unix] if self._unix is not None else [])):
            server.close()
        self._https.clear()
        self._unix = None
        if self._unix_path is not None:
            path, self._unix_path = self._unix_path, None
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:  # a disk that has failed; the next start removes it
                _log.warning("%s stays: %s", path, exc)

    async def close(self) -> None:
        """Stop accepting, let handlers end for two seconds, then cut what is left."""
        self.stop_accepting()
        await self._runner.cleanup()
