"""Mounts directories and files of the host inside a container, and takes them out again.

Owns one process that enters the namespaces of the container. Executed by drivers/lxc_disks.py as root, and by liblxc
as a hook when everything is set up and init has not begun. Every path
inside is resolved after entering, as root of the container, so that nothing outside can be reached through it.
"""

# ruff: noqa: PTH102, PTH103, PTH106, PTH108, PTH120, PTH123
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
_PROPAGATIONS = {"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20}

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
        what = "map the owners of" if request["idmap"] else "make read-only"
        change(tree, f"{what} {request['source']}", attributes=wanted, user=user if request["idmap"] else 0)
    # what is mounted inside must never appear on the host, whatever the container shares of it later
    change(tree, f"cut off {request['source']}", propagation=_PROPAGATIONS["slave"])
    return tree, stat.S_ISDIR(os.fstat(tree).st_mode)


def change(
    tree: int, what: str, *, attributes: int = 0, propagation: int = 0, user: int = 0, recursive: bool = True
) -> None:
    """Change a mount, with those below it if `recursive`. Raises Refused."""
    packed = struct.pack("=QQQQ", attributes, 0, propagation, user)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    checked(libc.syscall(_MOUNT_SETATTR, tree, b"", flags, packed, len(packed)), what)


def place(tree: int, request: dict[str, str], is_directory: bool) -> str:
    """Move a cloned mount to its place; we are inside. Return what `make_target` does."""
    target = request["target"]
    made = make_target(target.rstrip("/"), is_directory, request.get("made", ""))
    path = target.encode("utf-8", "surrogateescape")
    checked(
        libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH),
        f"mount at {target}",
    )
    mode = request.get("propagation", "")
    kind = mode if mode in _PROPAGATIONS else mode[1:]
    if kind and kind != "slave":  # which it is already
        what = f"make {mode} what is mounted at {target}"
        change(tree, what, propagation=_PROPAGATIONS[kind], recursive=kind != mode)
    return made


def user_namespace(pid: str) -> int:
    """Return a descriptor of the container's user namespace."""
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def attach(request: dict[str, str]) -> str:
    """Give a running container one disk."""
    user = user_namespace(request["pid"])
    tree, is_directory = cloned(request, user)
    enter(request, user)
    return place(tree, request, is_directory)


def begin(path: str, pid: str) -> None:
    """Give a container its disks just before its init begins (lxc.hook.start-host). Raises Refused, OSError."""
    import json  # only here: it costs a third of the start-up time

    with open(path) as file:
        requests = json.load(file)
    user = user_namespace(pid)
    trees = [(*cloned(request, user), request) for request in requests]
    with open(f"{path}.made", "w") as file:
        if trees:
            enter({**requests[0], "pid": pid}, user)
        made = {request["target"]: place(tree, request, is_directory) for tree, is_directory, request in trees}
        json.dump(made, file)


def enter(request: dict[str, str], user: int) -> None:
    """Become root of the container, at its root directory. Raises Refused."""
    enter_mounts(request)
    become_root(request, user)


def enter_mounts(request: dict[str, str]) -> None:
    """Be at the root directory of the container. Raises Refused."""
    mounts = os.open(f"/proc/{request['pid']}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    checked(libc.setns(mounts, _CLONE_NEWNS), "enter the mount namespace")
    os.chdir("/")


def become_root(request: dict[str, str], user: int) -> None:
    """Be nobody that the container's own root isn't. Raises Refused."""
    if request.get("unprivileged"):
        checked(libc.setns(user, _CLONE_NEWUSER), "enter the user namespace")
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def make_target(target: str, is_directory: bool, before: str) -> str:
    """Make the mount point as the container would, unless it is there. Return its inode's number if it is of our
    making: now, or earlier, when its number was `before`; else ""."""
    os.umask(0o022)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        if is_directory:
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    except FileExistsError:
        return before if before == number_of(target) else ""
    return number_of(target)


def number_of(path: str) -> str:
    """Return the number of an inode, "" if there is none."""
    try:
        return str(os.lstat(path).st_ino)
    except OSError:
        return ""


def detach(request: dict[str, str]) -> str:
    """Unmount inside, also while it is in use; nothing if it is gone."""
    user = user_namespace(request["pid"])
    enter_mounts(request)
    target = request["target"].encode("utf-8", "surrogateescape")
    if libc.umount2(target, _MNT_DETACH | _UMOUNT_NOFOLLOW) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise Refused(f"unmount {request['target']}: {os.strerror(number)}")
    if request["made"]:
        become_root(request, user)
        remove_target(request["target"].rstrip("/"), request["made"])
    return ""


def remove_target(target: str, made: str) -> None:
    """Remove the mount point that we made, if it is still that one, and empty."""
    try:
        found = os.lstat(target)
        if str(found.st_ino) != made:
            return
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(target)
        elif stat.S_ISREG(found.st_mode) and not found.st_size:
            os.unlink(target)
    except OSError:
        return  # something is in it, or mounted on it, or it is gone


def hook(path: str) -> int:
    """Run as liblxc's hook; the reason of a failure goes into a file for the daemon."""
    with open(f"{path}.error", "w") as file:  # now: later we may be inside, where no such path is
        try:
            begin(path, os.environ["LXC_PID"])
        except (Refused, OSError, KeyError) as error:
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
        send(control, made={"attach": attach, "detach": detach}[command](request))
    except Refused as refused:
        send(control, error=str(refused))
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            send(control, error=f"{command} {request.get('target', '')}: {error.strerror or error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
