"""Works on root file systems: changes owners for a new id map, measures, asks whether idmapped mounts work.

Owns blocking walks over trees that belong to instances. Executed by the lxc and storage drivers as root; must
never follow a symbolic link nor leave the directory that it was given.
"""

# ruff: noqa: PTH123, PTH208
# descriptors, not paths: pathlib follows links

import contextlib
import ctypes
import errno
import os
import socket
import stat
import struct
import sys

_CLONE_NEWUSER = 0x10000000
_OPEN_TREE, _MOUNT_SETATTR = 428, 442  # the same numbers on every architecture
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _MOUNT_ATTR_IDMAP = 1, 0x1000, 0x00100000
_CAPABILITY = "security.capability"
_VFS_CAP_REVISION_2, _VFS_CAP_REVISION_3 = 0x02000000, 0x03000000

libc = ctypes.CDLL(None, use_errno=True)


def receive(control: socket.socket) -> dict[str, str]:
    """Return the request."""
    size = int.from_bytes(control.recv(4, socket.MSG_WAITALL), "big")
    parts = control.recv(size, socket.MSG_WAITALL).decode("utf-8", "surrogateescape").split("\0")
    return dict(zip(parts[::2], parts[1::2], strict=True))


def send(control: socket.socket, **fields: str) -> None:
    """Send one message."""
    body = "\0".join(part for item in fields.items() for part in item).encode("utf-8", "surrogateescape")
    control.sendall(len(body).to_bytes(4, "big") + body)


def probe(control: socket.socket, request: dict[str, str]) -> None:
    """Tell whether the file system of `path` can be mounted with an id map by this kernel."""
    mapped, ready = os.pipe(), os.pipe()
    child = os.fork()  # a process of ours alone, that only waits in a new user namespace
    if child == 0:
        ok = libc.unshare(_CLONE_NEWUSER) == 0
        os.write(ready[1], b"1" if ok else b"0")
        os.close(mapped[1])
        os.read(mapped[0], 1)
        os._exit(0)
    os.close(mapped[0])
    reason = "user namespaces are not allowed"
    if os.read(ready[0], 1) == b"1":
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "w") as file:
                file.write("0 100000 65536")
        namespace = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
        tree = libc.syscall(_OPEN_TREE, -100, request["path"].encode(), _OPEN_TREE_CLONE)
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
        result = -1
        if tree >= 0:
            result = libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        reason = "" if result == 0 else os.strerror(ctypes.get_errno())
    os.close(mapped[1])
    os.waitpid(child, 0)
    send(control, idmapped="" if reason else "1", reason=reason)


def shift(control: socket.socket, request: dict[str, str]) -> None:
    """Move owners from one base to another: ids `from`+n become `to`+n. What is at the goal already stays."""
    old = int(request["from_uid"]), int(request["from_gid"])
    new = int(request["to_uid"]), int(request["to_gid"])
    size = int(request["size"])
    count = 0
    for directory, names in walk(request["path"]):
        for name in names:
            count += 1
            shift_one(directory, name, old, new, size)
    send(control, count=str(count))


def walk(path: str):  # type: ignore[no-untyped-def]
    """Yield (descriptor of a directory, names in it), the top as (descriptor, ["."]) first; one device only."""
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    device = os.fstat(top).st_dev
    yield top, ["."]
    stack = [top]
    while stack:
        descriptor = stack.pop()
        names = os.listdir(descriptor)
        yield descriptor, names
        for name in names:
            with contextlib.suppress(NotADirectoryError, FileNotFoundError):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode) and found.st_dev == device:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                    stack.append(os.open(name, flags, dir_fd=descriptor))
        os.close(descriptor)


def shift_one(directory: int, name: str, old: tuple[int, int], new: tuple[int, int], size: int) -> None:
    """Change one entry; keeps the set-id bits and rewrites file capabilities for the new root."""
    found = os.lstat(name) if directory < 0 else os.stat(name, dir_fd=directory, follow_symlinks=False)
    uid, gid = moved(found.st_uid, old[0], new[0], size), moved(found.st_gid, old[1], new[1], size)
    if (uid, gid) == (found.st_uid, found.st_gid):
        return
    capability = b""
    path = f"/proc/self/fd/{directory}/{name}"
    if stat.S_ISREG(found.st_mode):
        with contextlib.suppress(OSError):
            capability = os.getxattr(path, _CAPABILITY, follow_symlinks=False)
    os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=directory)
    if capability:
        os.setxattr(path, _CAPABILITY, moved_capability(capability, new[0]), follow_symlinks=False)


def moved(number: int, old: int, new: int, size: int) -> int:
    """Return the id after the move. Overlapping ranges: only ids below the distance of the two can be moved,
    so that repeating an interrupted run changes nothing twice."""
    return number - old + new if old <= number < old + min(size, abs(new - old)) else number


def moved_capability(value: bytes, root: int) -> bytes:
    """Return the attribute bound to `root`: revision 3 inside a user namespace, revision 2 for real root."""
    (magic,) = struct.unpack_from("<I", value)
    flags = magic & 0x00FFFFFF
    sets = value[4:20]
    if root:
        return struct.pack("<I", _VFS_CAP_REVISION_3 | flags) + sets + struct.pack("<I", root)
    return struct.pack("<I", _VFS_CAP_REVISION_2 | flags) + sets


def usage(control: socket.socket, request: dict[str, str]) -> None:
    """Measure the blocks of a tree; hard links count once."""
    total = count = 0
    seen: set[tuple[int, int]] = set()
    for directory, names in walk(request["path"]):
        for name in names:
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
            total += found.st_blocks * 512
            count += 1
    send(control, bytes=str(total), inodes=str(count))


def main() -> None:
    """Run `<command> <socket>`."""
    control = socket.socket(fileno=int(sys.argv[2]))
    control.set_inheritable(False)
    request = receive(control)
    try:
        {"probe": probe, "shift": shift, "usage": usage}[sys.argv[1]](control, request)
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            return
        send(control, error=f"{sys.argv[1]} {request.get('path', '')}: {error.strerror or error}")


if __name__ == "__main__":
    main()
