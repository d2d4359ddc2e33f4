"""Starts containers and runs commands inside them through liblxc, then ends (DESIGN D14).

Owns the one process in which liblxc may fork. Executed by drivers/lxc.py; must stay small (it is loaded for
each start and exec: 9 ms, 9 MB) and must never keep running once the daemon's end of the socket is closed.
"""

# ruff: noqa: S606
# No pathlib, socket, signal: they import enum and collections, which doubles the start-up time.

import _signal  # type: ignore[import-not-found]
import _socket
import errno
import fcntl
import os
import select
import sys
import termios

Fields = list[tuple[str, str]]

SIGKILL = 9
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441


def read_exactly(descriptor: int, size: int) -> bytes:
    """Return `size` bytes, fewer at the end of file."""
    data = b""
    while len(data) < size and (chunk := os.read(descriptor, size - len(data))):
        data += chunk
    return data


def receive(control: int) -> Fields:
    """Return the next message; empty at the end of the conversation."""
    head = read_exactly(control, 4)
    if len(head) < 4:
        return []
    parts = read_exactly(control, int.from_bytes(head, "big")).decode("utf-8", "surrogateescape").split("\0")
    return list(zip(parts[::2], parts[1::2], strict=True))


def send(control: int, **fields: str) -> None:
    """Send one message; the daemon may be gone, which is no error of ours."""
    body = "\0".join(part for item in fields.items() for part in item).encode("utf-8", "surrogateescape")
    data = len(body).to_bytes(4, "big") + body
    try:
        while data:
            data = data[os.write(control, data) :]
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise


def all_of(fields: Fields, key: str) -> list[str]:
    """Return every value of a repeated key."""
    return [value for name, value in fields if name == key]


def start(control: int, module: object, fields: Fields) -> None:
    """Start a container with a monitor of liblxc as its parent; answer with the pid of init."""
    one = dict(fields)
    container = module.Container(one["name"], one["path"])  # type: ignore[attr-defined]
    container.clear_config()
    for item in all_of(fields, "config"):
        key, _, value = item.partition("=")
        if not container.set_config_item(key, value):
            send(control, error=f"liblxc refused {key} = {value}")
            return
    if not container.start(useinit=False, daemonize=True, close_fds=True) or container.init_pid <= 0:
        send(control, error=f"Failed to run: start {one['name']}")
        return
    send(control, pid=str(container.init_pid))


def execute(control: int, module: object, fields: Fields) -> None:
    """Run one command inside; our stdio is its stdio. Pass on signals, answer with its exit status."""
    one = dict(fields)
    hide_terminal(one)
    container = module.Container(one["name"], one["path"])  # type: ignore[attr-defined]
    failed, failing = os.pipe()  # closed by a successful exec, else tells the errno

    def inside(argv: tuple[str, ...]) -> int:
        return become(argv, ["container=lxc", *all_of(fields, "env")], one, failing)

    pid = container.attach(
        inside,
        tuple(all_of(fields, "argv")),
        env_policy=module.LXC_ATTACH_CLEAR_ENV,  # type: ignore[attr-defined]
        initial_cwd="/",
        uid=int(one["uid"]),
        gid=int(one["gid"]),
    )
    os.close(failing)
    if pid <= 0:
        send(control, error="Failed to attach to the instance")
        return
    supervise(control, pid, failed)


def permit(control: int, module: object, fields: Fields) -> None:
    """Change what devices a running container may use, where its group has no file for that (cgroup2)."""
    one = dict(fields)
    container = module.Container(one["name"], one["path"])  # type: ignore[attr-defined]
    name, _, rule = one["item"].partition("=")
    if not container.set_cgroup_item(name, rule):
        send(control, error=f"liblxc refused {name} {rule}")
        return
    send(control, done="1")


def hide_terminal(one: dict[str, str]) -> None:
    """Keep the socket for the terminal from what we execute."""
    if "terminal" in one:
        os.set_inheritable(int(one["terminal"]), False)


def become(argv: tuple[str, ...], environment: list[str], one: dict[str, str], failing: int) -> int:
    """In the new process, already inside: take the terminal, change directory, exec. Returns on failure."""
    sys.path.clear()  # nothing may be imported any more: this would read the instance's files
    try:
        os.setsid()
        if one["interactive"] == "1":
            own_terminal(one)
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        for number in range(1, _signal.NSIG):
            if _signal.getsignal(number) == _signal.SIG_IGN:  # Python ignores SIGPIPE; what it starts must not
                _signal.signal(number, _signal.SIG_DFL)
        go_to(one["cwd"], one.get("root", "/"))
        run(argv, dict(item.partition("=")[::2] for item in environment))
    except OSError as error:
        os.write(failing, str(error.errno or errno.EIO).encode())
    return 127


def go_to(directory: str, root: str) -> None:
    """Change the directory; a command whose directory isn't there runs in the instance's root, as in Incus."""
    try:
        os.chdir(directory)
    except OSError:
        os.chdir(root)


def own_terminal(one: dict[str, str]) -> None:
    """Take a terminal of the instance for stdio and hand its other end to the daemon; without one keep ours."""
    try:
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
        slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return
    size = b"".join(int(one[side]).to_bytes(2, "little") for side in ("height", "width")) + bytes(4)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    mailbox = _socket.socket(fileno=int(one["terminal"]))
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, master.to_bytes(4, "little"))
    mailbox.sendmsg([b"t"], [rights])
    os.close(master)
    for number in range(3):
        os.dup2(slave, number)
    os.close(slave)


def run(argv: tuple[str, ...], environment: dict[str, str]) -> None:
    """Exec as execvpe does, without its lazy import. Raises the OSError that tells most."""
    if "/" in argv[0]:
        os.execve(argv[0], argv, environment)
    best = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for directory in environment.get("PATH", "/usr/bin:/bin").split(":"):
        try:
            os.execve(f"{directory or '.'}/{argv[0]}", argv, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            best = error  # type: ignore[assignment]
    raise best


def supervise(control: int, pid: int, failed: int) -> None:
    """Wait for the process; the daemon's end of file means that nobody listens any more: kill it."""
    reason = os.read(failed, 16)
    if reason:
        os.waitpid(pid, 0)
        number = int(reason)
        missing = number in (errno.ENOENT, errno.ENOTDIR)
        text, code = ("Command not found", "127") if missing else ("Command not executable", "126")
        send(control, failure=text, code=code, errno=os.strerror(number))
        return
    send(control, pid=str(pid))
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(control, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if pidfd in ready:
            break
        fields = receive(control)
        number = int(dict(fields).get("signal", "0")) if fields else SIGKILL
        if not fields:
            poll.unregister(control)
        _signal.pidfd_send_signal(pidfd, number)
    _, status = os.waitpid(pid, 0)
    result = os.waitstatus_to_exitcode(status)
    send(control, exit=str(result if result >= 0 else 128 - result))


def main() -> None:
    """Run `<command> <directory of _lxc> <socket>`."""
    command, directory, number = sys.argv[1:4]
    sys.path.insert(0, directory)
    import _lxc  # type: ignore[import-not-found]

    if command == "version":
        sys.stdout.write(_lxc.get_version())
        return
    control = int(number)
    os.set_inheritable(control, False)
    fields = receive(control)
    if not fields:
        return
    {"start": start, "exec": execute, "permit": permit}[command](control, _lxc, fields)
    os._exit(0)  # no time for the interpreter's farewell: the daemon waits for our end


if __name__ == "__main__":
    main()
