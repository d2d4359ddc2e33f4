"""Carries connections between the host and a running container: one process for each proxy device.

Owns the listening sockets on one side and the connections to the other. Executed by drivers/lxc_proxies.py as root; it
answers once it listens, then goes on by itself, also without the daemon, until the container's init ends. One side's
sockets are made inside the container's namespaces, so that neither side can reach further than it could by itself.
"""

# ruff: noqa: PTH101, PTH108
# plain paths: no pathlib in what enters a container

import contextlib
import ctypes
import os
import selectors
import socket
import stat
import sys
import time

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_CHUNK, _HIGH_WATER = 65_536, 262_144
_CONNECT_S = 10.0
_REST_S = 1.0
_UDP_IDLE_S, _UDP_PEERS = 60.0, 1024
_BACKLOG = 128

libc = ctypes.CDLL(None, use_errno=True)
Request = dict[str, str]


def receive(control: socket.socket) -> Request:
    """Return the request."""
    size = int.from_bytes(control.recv(4, socket.MSG_WAITALL), "big")
    parts = control.recv(size, socket.MSG_WAITALL).decode("utf-8", "surrogateescape").split("\0")
    return dict(zip(parts[::2], parts[1::2], strict=True))


def send(control: socket.socket, **fields: str) -> None:
    """Send one message; nobody may be there to hear it."""
    body = "\0".join(part for item in fields.items() for part in item).encode("utf-8", "surrogateescape")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.sendall(len(body).to_bytes(4, "big") + body)


# -- the two sides ----------------------------------------------------------------------------------------------------


def enter(request: Request) -> None:
    """Become root of the container, in its network and its files. Raises OSError."""
    spaces = [("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS)]
    if request["unprivileged"]:
        spaces.append(("user", _CLONE_NEWUSER))
    opened = [(os.open(f"/proc/{request['pid']}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), flag) for name, flag in spaces]
    for descriptor, flag in opened:
        if libc.setns(descriptor, flag) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"enter the container: {os.strerror(number)}")
        os.close(descriptor)
    if request["unprivileged"]:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    os.chdir("/")


def drop(request: Request) -> None:
    """Give up root on the side that connects, where the device says so."""
    gid, uid = int(request["security.gid"] or 0), int(request["security.uid"] or 0)
    if uid or gid:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def family_of(host: str) -> socket.AddressFamily:
    """Return the family of an address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listeners(request: Request) -> list[socket.socket]:
    """Bind where the device listens; we are on that side. Raises OSError, naming the address."""
    protocol = request["listen.protocol"]
    if protocol == "unix":
        return [unix_listener(request)]
    host, made = request["listen.host"], []
    for port in request["listen.ports"].split(","):
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        made.append(socket.socket(family_of(host), kind))
        made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in host:
            made[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            made[-1].bind((host, int(port)))
        except OSError as error:
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise refused(protocol, where, error) from None
        if protocol == "tcp":
            made[-1].listen(_BACKLOG)
    return made


def refused(protocol: str, where: str, error: OSError) -> OSError:
    """Return the error with Incus' words."""
    reason = (error.strerror or "").lower()
    return OSError(error.errno, f"Failed to listen on {where}: listen {protocol} {where}: bind: {reason}")


def unix_listener(request: Request) -> socket.socket:
    """Bind a unix socket; a dead one of that name is replaced, a living one and anything else are not."""
    path = request["listen.path"]
    made = socket.socket(socket.AF_UNIX)
    if path.startswith("@"):
        made.bind(b"\0" + path[1:].encode())
    else:
        remove_dead(path)
        mask = os.umask(0o177)
        try:
            made.bind(path)
        except OSError as error:
            raise refused("unix", path, error) from None
        finally:
            os.umask(mask)
        os.chown(path, int(request["uid"] or 0), int(request["gid"] or 0))
        os.chmod(path, int(request["mode"] or "0644", 8))
    made.listen(_BACKLOG)
    return made


def remove_dead(path: str) -> None:
    """Remove a socket that nobody listens on; connecting to a plain file is refused as well, and that stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return  # not there, or nothing that can be replaced: `bind` says which


def listeners_inside(request: Request) -> list[socket.socket]:
    """Have a child make the listening sockets inside, and take them. Raises OSError with the child's reason."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        code = 1
        try:
            enter(request)
            made = listeners(request)
            socket.send_fds(theirs, [b"+"], [one.fileno() for one in made])
            code = 0
        except OSError as error:
            theirs.sendall(b"-" + str(error.args[-1]).encode())
        finally:
            os._exit(code)
    theirs.close()
    text, descriptors, _, _ = socket.recv_fds(ours, 4096, 512)
    ours.close()
    os.wait()
    if not descriptors:
        raise OSError(0, text[1:].decode("utf-8", "replace") or "the child in the container ended")
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


class Target:
    """Where connections go: the same port for all, or one for each listening port."""

    def __init__(self, request: Request) -> None:
        self.protocol = request["connect.protocol"]
        self._host, self._path = request["connect.host"], request["connect.path"]
        self._ports = [int(port) for port in request["connect.ports"].split(",") if port]

    def connect(self, index: int) -> socket.socket:
        """Begin to connect; the socket becomes writable when that has ended. Raises OSError."""
        if self.protocol == "unix":
            made = socket.socket(socket.AF_UNIX)
            address: object = b"\0" + self._path[1:].encode() if self._path.startswith("@") else self._path
        else:
            kind = socket.SOCK_DGRAM if self.protocol == "udp" else socket.SOCK_STREAM
            made = socket.socket(family_of(self._host), kind)
            address = (self._host, self._ports[index if len(self._ports) > 1 else 0])
        made.setblocking(False)
        try:
            made.connect(address)  # type: ignore[arg-type]
        except BlockingIOError:
            return made
        except OSError:
            made.close()
            raise
        return made


# -- streams ----------------------------------------------------------------------------------------------------------


class Half:
    """One socket of a pair, with what waits to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.waiting = bytearray()
        self.read_all = False  # it sends no more
        self.shut = False  # we have told it that nothing more comes


class Pair:
    """Two streams that are each other's continuation, half-closes included."""

    def __init__(self, loop: "Loop", near: socket.socket, far: socket.socket, header: bytes) -> None:
        self._loop = loop
        self._near, self._far = Half(near), Half(far)
        self._far.waiting += header
        self._connecting_until = time.monotonic() + _CONNECT_S
        self._connected = False
        self._watch()

    def overdue(self, now: float) -> bool:
        """Whether the other side has not answered for too long."""
        return not self._connected and now > self._connecting_until

    def ready(self, sock: socket.socket, mask: int) -> None:
        """Move what can be moved."""
        here, there = (self._near, self._far) if sock is self._near.sock else (self._far, self._near)
        try:
            if here is self._far and not self._connected:
                failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failed:
                    raise OSError(failed, os.strerror(failed))
                self._connected = True
            if mask & selectors.EVENT_READ:
                self._read(here, there)
            self._write(here)
            self._write(there)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._near.shut and self._far.shut:
            self.close()
        else:
            self._watch()

    @staticmethod
    def _read(here: Half, there: Half) -> None:
        data = here.sock.recv(_CHUNK)
        if data:
            there.waiting += data
        else:
            here.read_all = True

    def _write(self, half: Half) -> None:
        other = self._near if half is self._far else self._far
        if half is self._far and not self._connected:
            return
        if half.waiting:
            with contextlib.suppress(BlockingIOError):
                del half.waiting[: half.sock.send(half.waiting)]
        if not half.waiting and other.read_all and not half.shut:
            half.shut = True
            half.sock.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        for half, other in ((self._near, self._far), (self._far, self._near)):
            mask = 0
            if not half.read_all and len(other.waiting) < _HIGH_WATER and (half is self._near or self._connected):
                mask |= selectors.EVENT_READ
            if half.waiting or (half is self._far and not self._connected):
                mask |= selectors.EVENT_WRITE
            self._loop.watch(half.sock, mask, self.ready)

    def close(self) -> None:
        """End both."""
        for half in (self._near, self._far):
            self._loop.watch(half.sock, 0, self.ready)
            half.sock.close()
        self._loop.pairs.discard(self)


class Datagrams:
    """One listening udp port: every sender gets a socket of its own to the target, forgotten when it is idle."""

    def __init__(self, loop: "Loop", listener: socket.socket, target: Target, index: int) -> None:
        self._loop, self._listener, self._target, self._index = loop, listener, target, index
        self._peers: dict[tuple[object, ...], tuple[socket.socket, float]] = {}
        listener.setblocking(False)
        loop.watch(listener, selectors.EVENT_READ, self._from_client)

    def _from_client(self, _: socket.socket, __: int) -> None:
        with contextlib.suppress(OSError):
            data, sender = self._listener.recvfrom(_CHUNK)
            known = self._peers.get(sender)
            if known is None:
                if len(self._peers) >= _UDP_PEERS:
                    return
                sock = self._target.connect(self._index)
                self._loop.watch(sock, selectors.EVENT_READ, lambda s, _m: self._to_client(s, sender))
            else:
                sock = known[0]
            self._peers[sender] = sock, time.monotonic()
            sock.send(data)

    def _to_client(self, sock: socket.socket, sender: tuple[object, ...]) -> None:
        with contextlib.suppress(OSError):
            self._listener.sendto(sock.recv(_CHUNK), sender)

    def forget_idle(self, now: float) -> None:
        """Close what nobody has used for a minute."""
        for sender, (sock, used) in list(self._peers.items()):
            if now - used > _UDP_IDLE_S:
                self._loop.watch(sock, 0, lambda _s, _m: None)
                sock.close()
                del self._peers[sender]


class Loop:
    """What is watched. Ends when the container's init does."""

    def __init__(self, pidfd: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(pidfd, selectors.EVENT_READ, None)
        self.pairs: set[Pair] = set()
        self.ports: list[Datagrams] = []
        self._resting: dict[socket.socket, tuple[float, object]] = {}  #: until when, and what comes then

    def rest(self, sock: socket.socket, ready: object) -> None:
        """Don't watch it for a second: it is ready all the time, and nothing can be done about it now."""
        self.watch(sock, 0, ready)
        self._resting[sock] = (time.monotonic() + _REST_S, ready)

    def watch(self, sock: socket.socket, mask: int, ready: object) -> None:
        """Call `ready(sock, mask)` from now on; 0: no more."""
        known = self._selector.get_map().get(sock) if sock.fileno() >= 0 else None
        if known is None:
            if mask:
                self._selector.register(sock, mask, ready)
        elif not mask:
            self._selector.unregister(sock)
        elif known.events != mask:
            self._selector.modify(sock, mask, ready)

    def run(self) -> None:
        """Serve until init is gone."""
        while True:
            for key, mask in self._selector.select(_REST_S if self._resting else 5.0):
                if key.data is None:
                    return
                if key.fileobj.fileno() >= 0:  # type: ignore[union-attr]
                    key.data(key.fileobj, mask)
            now = time.monotonic()
            for sock in [sock for sock, (until, _) in self._resting.items() if until <= now]:
                self.watch(sock, selectors.EVENT_READ, self._resting.pop(sock)[1])
            for pair in [pair for pair in self.pairs if pair.overdue(now)]:
                pair.close()
            for port in self.ports:
                port.forget_idle(now)


def header_of(request: Request, client: socket.socket) -> bytes:
    """Return the line of the PROXY protocol, version 1, that tells the target who the client is."""
    if not request["proxy_protocol"]:
        return b""
    if client.family == socket.AF_UNIX:
        return b"PROXY UNKNOWN\r\n"
    (source, source_port), (here, port) = client.getpeername()[:2], client.getsockname()[:2]
    kind = "TCP6" if client.family == socket.AF_INET6 else "TCP4"
    return f"PROXY {kind} {source} {here} {source_port} {port}\r\n".encode()


def serve(loop: Loop, request: Request, made: list[socket.socket], target: Target) -> None:
    """Accept on every socket; a target that refuses ends that connection only."""

    def accept(listener: socket.socket, index: int) -> None:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # who wanted to connect is gone
        except OSError:  # no descriptor is left, or the kernel has closed the listener (`ss -K`)
            loop.rest(listener, lambda sock, _mask, at=index: accept(sock, at))
            return
        client.setblocking(False)
        try:
            loop.pairs.add(Pair(loop, client, target.connect(index), header_of(request, client)))
        except OSError:
            client.close()

    for index, listener in enumerate(made):
        if target.protocol == "udp":
            loop.ports.append(Datagrams(loop, listener, target, index))
        else:
            listener.setblocking(False)
            loop.watch(listener, selectors.EVENT_READ, lambda sock, _mask, at=index: accept(sock, at))
    loop.run()


def main() -> int:
    """Run `<socket>`."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    request = receive(control)
    try:
        loop = Loop(os.pidfd_open(int(request["pid"])))
        if request["inside"]:
            made = listeners_inside(request)
        else:
            made = listeners(request)
            enter(request)
        drop(request)
    except OSError as error:
        send(control, error=str(error.args[-1]))
        return 1
    send(control, pid=str(os.getpid()))
    control.close()
    serve(loop, request, made, Target(request))
    return 0


if __name__ == "__main__":
    sys.exit(main())
