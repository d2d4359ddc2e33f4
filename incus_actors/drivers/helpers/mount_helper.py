"""Mounts directories and files of the host inside a container, and takes them out again.

Owns one process that enters the namespaces of the container. Executed by drivers/lxc_disks.py as root, and by liblxc
as a hook when everything is set up and init has not begun. Every path
inside is resolved after entering, as root of the container, so that nothing outside can be reached through it.
"""

# ruff: noqa: PTH103, PTH108, PTH110, PTH113, PTH120, PTH123, PTH202
# descriptors and plain paths: no pathlib in what enters a container

import ctypes
import errno
import os
import socket
import stat
import struct
import sys

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same numbers on every architecture
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 1, 0x00100000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):  # noqa: N818  # the helper's way to say why not
    """Sent to the daemon as text."""


def receive(control: socket.socket) -> dict[str, str]:
    """Return the request."""
    size = int.from_bytes(control.recv(4, socket.MSG_WAITALL), "big")
    parts = control.recv(size, socket.MSG_WAITALL).decode("utf-8", "surrogateescape").split("\0")
    return dict(zip(parts[::2], parts[1::2], strict=True))


def send(control: socket.socket, **fields: str) -> None:
    """Send one message."""
    body = "\0".join(part for item in fields.items() for part in item).encode("utf-8", "surrogateescape")
    control.sendall(len(body).to_bytes(4, "big") + body)


def checked(result: int, what: str) -> int:
    """Return the result of a system call. Raises Refused."""
    if result < 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def cloned(request: dict[str, str], user: int) -> tuple[int, bool]:
    """Clone the mount of a source, detached and changed; return its descriptor, and whether it is a directory."""
    recursive = _AT_RECURSIVE if request["recursive"] else 0
    source = request["source"].encode("utf-8", "surrogateescape")
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | recursive
    tree = checked(libc.syscall(_OPEN_TREE, _AT_FDCWD, source, flags), f"open {request['source']}")
    wanted = (_MOUNT_ATTR_RDONLY if request["readonly"] else 0) | (_MOUNT_ATTR_IDMAP if request["idmap"] else 0)
    if wanted:
        attributes = struct.pack("=QQQQ", wanted, 0, 0, user if request["idmap"] else 0)
        what = "map the owners of" if request["idmap"] else "make read-only"
        checked(
            libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | recursive, attributes, len(attributes)),
            f"{what} {request['source']}",
        )
    return tree, stat.S_ISDIR(os.fstat(tree).st_mode)


def place(tree: int, target: str, is_directory: bool) -> None:
    """Move a cloned mount to its place; we are inside."""
    make_target(target, is_directory)
    path = target.encode("utf-8", "surrogateescape")
    checked(
        libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH),
        f"mount at {target}",
    )


def user_namespace(pid: str) -> int:
    """Return a descriptor of the container's user namespace."""
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def attach(request: dict[str, str]) -> None:
    """Give a running container one disk."""
    user = user_namespace(request["pid"])
    tree, is_directory = cloned(request, user)
    enter(request, user)
    place(tree, request["target"], is_directory)


def begin(path: str, pid: str) -> None:
    """Give a container its disks just before its init begins (lxc.hook.start-host). Raises Refused, OSError."""
    import json  # only here: it costs a third of the start-up time

    with open(path) as file:
        requests = json.load(file)
    user = user_namespace(pid)
    trees = [(*cloned(request, user), request["target"]) for request in requests]
    if trees:
        enter({**requests[0], "pid": pid}, user)
    for tree, is_directory, target in trees:
        place(tree, target, is_directory)


def enter(request: dict[str, str], user: int) -> None:
    """Become root of the container, at its root directory. Raises Refused."""
    mounts = os.open(f"/proc/{request['pid']}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    checked(libc.setns(mounts, _CLONE_NEWNS), "enter the mount namespace")
    if request.get("unprivileged"):
        checked(libc.setns(user, _CLONE_NEWUSER), "enter the user namespace")
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    os.chdir("/")


def make_target(target: str, is_directory: bool) -> None:
    """Make the mount point as the container would."""
    os.umask(0o022)
    os.makedirs(target if is_directory else os.path.dirname(target), exist_ok=True)
    if not is_directory and not os.path.exists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def detach(request: dict[str, str]) -> None:
    """Unmount inside, also while it is in use; nothing if it is gone."""
    enter(request, user_namespace(request["pid"]))
    target = request["target"].encode("utf-8", "surrogateescape")
    if libc.umount2(target, _MNT_DETACH | _UMOUNT_NOFOLLOW) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise Refused(f"unmount {request['target']}: {os.strerror(number)}")
    if request["remove"] and os.path.isfile(target) and not os.path.getsize(target):
        os.unlink(target)  # the place that we made for a device node


def hook(path: str) -> int:
    """Run as liblxc's hook; the reason of a failure goes into a file for the daemon."""
    try:
        begin(path, os.environ["LXC_PID"])
    except (Refused, OSError, KeyError) as error:
        with open(f"{path}.error", "w") as file:
            file.write(str(error))
        return 1
    return 0


def main() -> int:
    """Run `attach <socket>`, `detach <socket>` or `hook <file>`; what liblxc appends for a hook is left alone."""
    command, argument = sys.argv[1:3]
    if command == "hook":
        return hook(argument)
    control = socket.socket(fileno=int(argument))
    control.set_inheritable(False)
    request = receive(control)
    try:
        {"attach": attach, "detach": detach}[command](request)
        send(control, done="1")
    except Refused as refused:
        send(control, error=str(refused))
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            send(control, error=f"{command} {request.get('target', '')}: {error.strerror or error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
