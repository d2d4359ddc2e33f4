"""The forming benchmark: how long it takes to join members, one by one, at once and from preseeds, and to look at a cluster
of which a part is gone; ours and real Incus in the same run.

Owns the measurements; called by `incus-actors bench forming` and the acceptance tests. Everything goes through the same
requests or the same stock client for both products. Must never report a row that it did not measure.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.everyday import Row, client, client_environment, sample
from incus_actors.lab.processes import LabMember

BOOTSTRAP = """\
config:
  core.https_address: {address}
storage_pools:
- name: default
  driver: dir
profiles:
- name: default
  devices:
    root: {{path: /, pool: default, type: disk}}
cluster:
  server_name: {name}
  enabled: true
"""
JOIN = """\
cluster:
  enabled: true
  server_address: {address}
  cluster_token: {token}
"""


def bootstrap_by_preseed(member: LabMember) -> None:
    """Make a server the first member of a cluster with the stock client. Raises RuntimeError with its words."""
    text = BOOTSTRAP.format(address=member.https_address, name=member.name)
    client(member, "admin", "init", "--preseed", text=text)


def join_by_preseed(first: LabMember, joiner: LabMember) -> None:
    """Fetch a token with the stock client and join with it. Raises RuntimeError with its words."""
    token = token_of(first, joiner.name)
    client(joiner, "admin", "init", "--preseed", text=JOIN.format(address=joiner.https_address, token=token))


def token_of(member: LabMember, name: str) -> str:
    """Return a new join token. Raises CalledProcessError."""
    command = ["incus", "cluster", "add", name, "--quiet"]
    done = subprocess.run(
        command, env=client_environment(member), capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def join_at_once(cluster: LabCluster, joiners: Sequence[LabMember]) -> list[float]:
    """Join several servers at the same moment; return the seconds that each took. Raises what the first failure says."""
    seconds: list[float] = []
    failures: list[BaseException] = []
    together = threading.Barrier(len(joiners))

    def join(member: LabMember) -> None:
        try:
            together.wait(30)
            seconds.append(cluster.join(member))
        except BaseException as error:  # raised again below, in the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=join, args=(member,)) for member in joiners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return seconds


@contextmanager
def started(count: int, *, real: bool = False) -> Iterator[LabCluster]:
    """Give `count` standalone servers that answer, and remove them."""
    cluster = LabCluster.in_namespaces(count, prefix="fmb" if real else "fma", real=real)
    try:
        for member in cluster.members:
            member.start()
        for member in cluster.members:
            member.wait_until_ready(120)
        yield cluster
    finally:
        cluster.destroy()


class Forming:
    """All rows of one product."""

    def __init__(self, product: str, *, say: Callable[[str], None]) -> None:
        self.product = product
        self.say = say
        self.rows: list[Row] = []
        self._real = product == "Incus"

    def run(self) -> list[Row]:
        """Measure everything."""
        self._from_preseeds(10)
        self._one_by_one(12, 5)
        self._degraded()
        return self.rows

    def add(self, what: str, unit: str, values: list[float], budget: float | None = None) -> None:
        """Keep and say one row."""
        self.rows.append(sample(what, self.product, unit, values, budget))
        row = self.rows[-1]
        self.say(f"{self.product:13} {what}: p50 {row.p50:.3f} {unit}, p99 {row.p99:.3f} {unit} (n={row.samples})")

    def _from_preseeds(self, count: int) -> None:
        with started(count, real=self._real) as cluster:
            first, *joiners = cluster.members
            begin = time.perf_counter()
            bootstrap_by_preseed(first)
            for joiner in joiners:
                join_by_preseed(first, joiner)
            self.add(f"{count} members formed from preseeds", "s", [time.perf_counter() - begin], 15)

    def _one_by_one(self, one_by_one: int, at_once: int) -> None:
        with started(one_by_one + at_once, real=self._real) as cluster:
            cluster.bootstrap()
            joins = [cluster.join(member) for member in cluster.members[1:one_by_one]]
            self.add(f"join, one after the other, up to {one_by_one} members", "s", joins, 0.7)
            begin = time.perf_counter()
            what = f"{at_once} members joined at the same moment, all of them"
            try:
                join_at_once(cluster, cluster.members[one_by_one:])
            except (RequestFailedError, OSError) as error:
                if not self._real:
                    raise
                self.say(f"{self.product:13} {what}: failed: {error}")
                return
            self.add(what, "s", [time.perf_counter() - begin])
            cluster.wait_until_healthy(120)
            self.add(
                f"`incus cluster list` of {one_by_one + at_once} members",
                "s",
                [client(cluster.members[-1], "cluster", "list") for _ in range(10)],
                0.1,
            )

    def _degraded(self) -> None:
        with started(3, real=self._real) as cluster:
            cluster.bootstrap()
            for member in cluster.members[1:]:
                cluster.join(member)
            cluster.wait_until_healthy(120)
            leader = wait_for(cluster.leader, "a leader")
            first, second = (member for member in cluster.members if member is not leader)
            assert cluster.network is not None
            cluster.network.cut(cluster.members.index(second) + 1)
            listed = [client(first, "cluster", "list") for _ in range(20)]
            self.add("`incus cluster list`, one member's network just cut", "s", listed, 0.1)
            if self._real:
                return  # waits for its own time-outs, minutes long
            cluster.network.cut(cluster.members.index(leader) + 1)
            refused = [refusal(first, leader.name, second.name) for _ in range(10)]
            self.add("a write without a quorum is refused, naming who is missing", "s", refused, 1.0)
            listed = [client(first, "cluster", "list") for _ in range(10)]
            self.add("`incus cluster list` without a quorum", "s", listed)


def refusal(member: LabMember, *missing: str) -> float:
    """Write without a quorum with the stock client; return the seconds until the error, which must name who is missing.

    Raises RuntimeError if the write succeeds or the error does not say it.
    """
    begin = time.perf_counter()
    try:
        client(member, "config", "set", "user.x", str(begin))
    except RuntimeError as error:
        took = time.perf_counter() - begin
        if not all(name in str(error) for name in missing):
            raise
        return took
    raise RuntimeError("a write was accepted without a quorum")
