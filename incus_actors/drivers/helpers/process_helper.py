"""Instances without liblxc: a supervised init in its own namespaces, or a plain process where those are refused.

Owns the unshare, the mounts and the fork; stays as the parent of init (the monitor), so that the instance
outlives the daemon. Executed by drivers/process.py as any user; must never gain privileges that its user has not.
"""

# ruff: noqa: PTH102, PTH103, PTH120, PTH123, PTH211, S606
# plain os calls: between unshare and exec nothing may be imported

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import sys

sys.path.insert(0, os.path.dirname(__file__))
import lxc_helper  # type: ignore[import-not-found]

Fields = list[tuple[str, str]]

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "i686": 217, "armv7l": 218, "ppc64le": 203, "s390x": 217}
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "container": "incus",
    "HOME": "/",
}

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Raise OSError for a failed call of libc."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount. Raises OSError."""
    checked(libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()), f"mount {target}")


def enter_new_namespaces() -> None:
    """Become root of new namespaces in which only our own user exists. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    checked(libc.unshare(NEWUSER), "unshare the user namespace")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    checked(libc.unshare(NEWNS | NEWPID | NEWUTS | NEWIPC | NEWNET), "unshare namespaces")


def probe(control: int, _: Fields) -> None:
    """Tell whether instances can have namespaces of their own here."""
    pid = os.fork()
    if pid == 0:
        failed = 0
        try:
            enter_new_namespaces()
        except OSError as error:
            failed = error.errno or errno.EIO
        os._exit(min(failed, 255))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lxc_helper.send(control, reason=os.strerror(code) if code else "")


def start(control: int, fields: Fields) -> None:
    """Start an instance and stay as its monitor until it ends."""
    one = dict(fields)
    environment = dict(ENVIRONMENT)
    environment.update(item.partition("=")[::2] for item in lxc_helper.all_of(fields, "env"))
    namespaces = one["mode"] == "namespaces"
    console = os.open(one["console"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        if namespaces:
            enter_new_namespaces()
    except OSError as error:
        lxc_helper.send(control, error=f"Failed to make namespaces: {error.strerror}")
        return
    failed, failing = os.pipe()
    pid = os.fork()
    if pid == 0:
        be_init(one, environment, console, failing, namespaces)
    os.close(failing)
    reason = os.read(failed, 512).decode(errors="replace")
    lxc_helper.send(control, **({"error": reason} if reason else {"pid": str(pid)}))
    os.close(control)
    detach(console)
    os.waitpid(pid, 0)  # a reboot from inside ends the instance: a pid namespace has one init only


def detach(console: int) -> None:
    """Keep nothing of the daemon's: our error output goes to the console's log from now on."""
    os.dup2(console, 2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def be_init(one: dict[str, str], environment: dict[str, str], console: int, failing: int, namespaces: bool) -> None:
    """In the child: set up the instance and exec its init. Never returns."""
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        os.setsid()
        if namespaces:
            set_up(one["rootfs"], one["name"])
        with open(os.devnull, "rb") as null:
            os.dup2(null.fileno(), 0)
        os.dup2(console, 1)
        os.dup2(console, 2)
        if namespaces:
            os.execve("/sbin/init", ["init"], environment)
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-B", __file__, "plain-init", "-1"], environment)
    except OSError as error:
        os.write(failing, f"Failed to start init: {error}".encode()[:500])
    os._exit(1)


def plain_init() -> None:
    """Be the process of an instance without namespaces: wait for the signal to end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPWR, signal.SIGTERM, signal.SIGCHLD})
    while signal.sigwait({signal.SIGPWR, signal.SIGTERM, signal.SIGCHLD}) == signal.SIGCHLD:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def set_up(rootfs: str, name: str) -> None:
    """Build the instance's view: root, /proc, /dev, host name, loopback. Raises OSError."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount(rootfs, rootfs, flags=MS_BIND | MS_REC)
    for directory in ("proc", "dev", "sys", "tmp", "run"):
        os.makedirs(f"{rootfs}/{directory}", exist_ok=True)
    set_up_devices(f"{rootfs}/dev")
    mount("proc", f"{rootfs}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    with contextlib.suppress(OSError):
        mount("sysfs", f"{rootfs}/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    with open("/proc/self/uid_map") as file:
        real_root = file.read().split()[1] == "0"
    if real_root:
        # Real root may write these by ownership, capabilities or not.
        mount(f"{rootfs}/proc/sys", f"{rootfs}/proc/sys", flags=MS_BIND)
        mount("none", f"{rootfs}/proc/sys", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    socket.sethostname(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loopback:
        request = struct.pack("16sh14x", b"lo", IFF_UP)
        fcntl.ioctl(loopback, SIOCSIFFLAGS, request)
    os.chdir(rootfs)
    checked(libc.syscall(PIVOT_ROOT.get(os.uname().machine, 41), b".", b"."), "pivot_root")
    checked(libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")


def set_up_devices(dev: str) -> None:
    """Give the instance a /dev of its own with the harmless devices of the host."""
    mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for device in DEVICES:
        with open(f"{dev}/{device}", "w"):
            pass
        mount(f"/dev/{device}", f"{dev}/{device}", flags=MS_BIND)
    os.mkdir(f"{dev}/pts")
    mount("devpts", f"{dev}/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
    for link, target in (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0")):
        os.symlink(target, f"{dev}/{link}")
    os.symlink("/proc/self/fd/1", f"{dev}/stdout")
    os.symlink("/proc/self/fd/2", f"{dev}/stderr")


def execute(control: int, fields: Fields) -> None:
    """Run one command in the instance of a given init; our stdio is its stdio."""
    one = dict(fields)
    argv = lxc_helper.all_of(fields, "argv")
    environment = lxc_helper.all_of(fields, "env")
    if one["uid"] != "0" or one["gid"] != "0":
        lxc_helper.send(control, error="Instances of the process driver have no user but root")
        return
    lxc_helper.hide_terminal(one)
    if one["mode"] == "namespaces":
        enter_existing(int(one["init"]))
    else:
        argv, environment, one["cwd"] = plain_command(one["rootfs"], argv, environment, one["cwd"])
        one["root"] = one["rootfs"]
    failed, failing = os.pipe()
    pid = os.fork()
    if pid == 0:
        lxc_helper.become(tuple(argv), environment, one, failing)
        os._exit(127)
    os.close(failing)
    lxc_helper.supervise(control, pid, failed)


def enter_existing(init: int) -> None:
    """Enter all namespaces of a process; children are inside, we stay outside of its pid namespace."""
    names = ("user", "ipc", "uts", "net", "pid", "mnt")
    descriptors = [os.open(f"/proc/{init}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names]
    for name, descriptor in zip(names, descriptors, strict=True):
        checked(libc.setns(descriptor, 0), f"enter the {name} namespace")
        os.close(descriptor)
    os.chdir("/")


def plain_command(rootfs: str, argv: list[str], environment: list[str], cwd: str) -> tuple[list[str], list[str], str]:
    """Point a command at the instance's files, without any isolation."""
    paths = [item.partition("=")[2] for item in environment if item.startswith("PATH=")] or [ENVIRONMENT["PATH"]]
    mapped = ":".join(f"{rootfs}{path}" for path in paths[-1].split(":"))
    rest = [item for item in environment if not item.startswith("PATH=")]
    if argv[0].startswith("/") and os.path.lexists(rootfs + argv[0]):
        argv = [rootfs + argv[0], *argv[1:]]
    return argv, [*rest, f"PATH={mapped}"], rootfs + cwd


def main() -> None:
    """Run `<command> <socket>`."""
    command, number = sys.argv[1:3]
    if command == "plain-init":
        plain_init()
        return
    control = int(number)
    os.set_inheritable(control, False)
    fields = lxc_helper.receive(control)
    try:
        if fields:
            {"probe": probe, "start": start, "exec": execute}[command](control, fields)
    except OSError as error:
        lxc_helper.send(control, error=f"Failed to {command}: {error.strerror}")
    os._exit(0)


if __name__ == "__main__":
    main()
