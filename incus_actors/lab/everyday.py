"""The everyday benchmark: the rows of DESIGN section 3 besides failover, ours and real Incus in the same run.

Owns the measurements; called by `incus-actors bench everyday`. Every row is measured through the same requests or
the same stock client for both products. Must never report a row that it did not measure.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.processes import LabMember
from incus_actors.lab.report import quantile

IMAGE = "tiny"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. `budget` is our goal in the same unit."""

    what: str
    product: str
    unit: str
    samples: int
    p50: float
    p99: float
    budget: float | None


def sample(what: str, product: str, unit: str, values: list[float], budget: float | None = None) -> Row:
    """Make a row of measured values."""
    return Row(what, product, unit, len(values), quantile(values, 0.5), quantile(values, 0.99), budget)


def timed_ms(count: int, action: Callable[[int], object]) -> list[float]:
    """Return the milliseconds of `count` calls after three that do not count."""
    for warm in range(3):
        action(-1 - warm)
    found = []
    for number in range(count):
        begin = time.perf_counter()
        action(number)
        found.append((time.perf_counter() - begin) * 1e3)
    return found


def client_environment(member: LabMember) -> dict[str, str]:
    """Return the environment in which the stock client talks to one member."""
    return {
        **os.environ,
        "INCUS_DIR": str(member.directory),
        "INCUS_CONF": str(member.directory.parent / "conf"),
    }


def client(member: LabMember, *arguments: str, text: str = "") -> float:
    """Run the stock client against one member, with `text` as its standard input; return the seconds it took.

    Raises RuntimeError with its words.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        ["incus", *arguments],
        env=client_environment(member),
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    took = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"incus {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return took


def rss_mib(pid: int) -> float:
    """Return the resident set of a process in MiB."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """Return user and system seconds of a process (not of its children)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def daemon_pid(member: LabMember) -> int:
    """Return the daemon's own process id (the lab's child may be `ip netns exec`, which execs)."""
    return int(member.client.get("/1.0")["environment"]["server_pid"])


@contextmanager
def tiny_image() -> Iterator[Path]:
    """Give a unified tarball of a busybox system."""
    from incus_actors.drivers.tiny_image import TinyImage

    with tempfile.TemporaryDirectory(prefix="tiny-image-") as directory:
        yield TinyImage().write_unified(Path(directory) / "tiny.tar.gz")


class Everyday:
    """All rows of one product on one fresh cluster of three."""

    def __init__(self, product: str, *, writes: int, launches: int, idle_s: float, say: Callable[[str], None]) -> None:
        self.product = product
        self.writes = writes
        self.launches = launches
        self.idle_s = idle_s
        self.say = say
        self.rows: list[Row] = []

    def run(self) -> list[Row]:
        """Form the cluster, measure everything, remove it."""
        real = self.product == "Incus"
        cluster = LabCluster.in_namespaces(3, prefix="evb" if real else "eva", real=real)
        try:
            self._form(cluster)
            leader = wait_for(cluster.leader, "a leader")
            follower = next(m for m in cluster.members if m is not leader)
            self._requests(leader, follower)
            self._idle(cluster)
            with tiny_image() as image:
                client(leader, "image", "import", str(image), "--alias", IMAGE)
            self._instances(leader, follower)
        finally:
            self._remove_instances(cluster)
            cluster.destroy()
        return self.rows

    def add(self, what: str, unit: str, values: list[float], budget: float | None = None) -> None:
        """Keep and say one row."""
        self.rows.append(sample(what, self.product, unit, values, budget))
        row = self.rows[-1]
        self.say(f"{self.product:13} {what}: p50 {row.p50:.2f} {unit}, p99 {row.p99:.2f} {unit} (n={row.samples})")

    def _form(self, cluster: LabCluster) -> None:
        starts = []
        for member in cluster.members:
            begin = time.perf_counter()
            member.start()
            member.wait_until_ready(60)
            starts.append(time.perf_counter() - begin)
        self.add("first start of a daemon until it answers", "s", starts)
        self.add("bootstrap", "s", [cluster.bootstrap()], 0.4)
        self.add("join", "s", [cluster.join(m) for m in cluster.members[1:]], 0.7)
        cluster.wait_until_healthy(120)
        follower = next(m for m in cluster.members if m is not cluster.leader())
        restarts = []
        for _ in range(3):
            follower.stop()
            begin = time.perf_counter()
            follower.start()
            follower.wait_until_ready(60)
            restarts.append(time.perf_counter() - begin)
        self.add("start of a daemon until it answers", "s", restarts, 0.8)
        cluster.wait_until_healthy(120)

    def _requests(self, leader: LabMember, follower: LabMember) -> None:
        for where, member, budget in (("leader", leader, 8.0), ("follower", follower, 10.0)):
            values = timed_ms(
                self.writes,
                lambda n, m=member: m.client.request("PATCH", "/1.0", {"config": {"user.bench": str(n)}}),  # type: ignore[misc]
            )
            self.add(f"config write over REST, {where}", "ms", values, budget)
        for where, member in (("leader", leader), ("follower", follower)):
            for what, path, budget in (
                ("member list (recursion=1)", "/1.0/cluster/members?recursion=1", 2.5),
                ("server object (GET /1.0)", "/1.0", 1.5),
                ("instance list (recursion=2, none)", "/1.0/instances?recursion=2", 1.5),
            ):
                values = timed_ms(self.writes, lambda _n, m=member, p=path: m.client.get(p))  # type: ignore[misc]
                self.add(f"{what}, {where}", "ms", values, budget)

    def _idle(self, cluster: LabCluster) -> None:
        time.sleep(2)
        pids = [daemon_pid(m) for m in cluster.members]
        self.add("memory of a member (RSS)", "MiB", [rss_mib(p) for p in pids], 75)
        before = [cpu_seconds(p) for p in pids]
        time.sleep(self.idle_s)
        spent = [(cpu_seconds(p) - b) / self.idle_s * 100 for p, b in zip(pids, before, strict=True)]
        self.add("idle CPU of a member", "% of a core", spent, 2.0)

    def _instances(self, leader: LabMember, follower: LabMember) -> None:
        here, there = leader.name, follower.name
        client(leader, "launch", IMAGE, "warm1", "--target", here)
        client(leader, "launch", IMAGE, "warm2", "--target", there)
        count = self.launches
        local = [client(leader, "launch", IMAGE, f"l{n}", "--target", here) for n in range(count)]
        self.add("launch of a small container, local", "s", local, 0.35)
        remote = [client(leader, "launch", IMAGE, f"r{n}", "--target", there) for n in range(count)]
        self.add("launch of a small container, other member", "s", remote, 0.40)
        self.add("exec of a no-op, local", "s", [client(leader, "exec", "l0", "--", "true") for _ in range(20)], 0.06)
        self.add(
            "exec of a no-op, other member", "s", [client(leader, "exec", "r0", "--", "true") for _ in range(20)], 0.08
        )
        self.add(
            f"`incus list` with {2 + 2 * count} running containers",
            "s",
            [client(leader, "list") for _ in range(10)],
            0.15,
        )
        stops, starts = [], []
        for n in range(count):
            stops.append(client(leader, "stop", "-f", f"l{n}"))
            starts.append(client(leader, "start", f"l{n}"))
        self.add("forced stop", "s", stops, 0.2)
        self.add("start", "s", starts, 0.19)

    def _remove_instances(self, cluster: LabCluster) -> None:
        for member in cluster.online():
            try:
                names = [url.rsplit("/", 1)[1] for url in member.client.get("/1.0/instances")]
                if names:
                    client(member, "delete", "-f", *names)
            except (OSError, RuntimeError, ValueError) as problem:
                self.say(f"{self.product}: could not remove the instances: {problem}")
                continue
            return


def elections_while_busy(product: str, seconds: float, say: Callable[[str], None]) -> Row:
    """Count changes of term in `seconds` with a busy loop on every core beside a cluster of ours."""
    cluster = LabCluster.in_namespaces(3, prefix="evc")
    loops: list[subprocess.Popen[bytes]] = []
    try:
        cluster.form()
        cluster.wait_until_healthy(120)
        before = int(cluster.members[0].client.get("/internal/raft")["status"]["term"])
        loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2)]
        time.sleep(seconds)
        after = int(cluster.members[0].client.get("/internal/raft")["status"]["term"])
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        cluster.destroy()
    say(f"{product}: {after - before} elections in {seconds:g} s with two busy loops beside it")
    return sample(f"elections in {seconds:g} s, two busy loops beside it", product, "", [float(after - before)], 0)
