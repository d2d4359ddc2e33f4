"""The storage benchmark: pools and networks over three members, launches from a cached image on btrfs, long lists of
volumes; ours and real Incus in the same run.

Owns the measurements; called by `incus-actors bench storage`. Both products are asked by the same stock client. Must never
report a row that it did not measure.
"""

from __future__ import annotations

from collections.abc import Callable

from incus_actors.lab.cluster import LabCluster
from incus_actors.lab.everyday import IMAGE, Row, client, sample, tiny_image

VOLUMES = 500
MEMBERS = ("m1", "m2", "m3")


class StorageBench:
    """All rows of one product on one fresh cluster of three."""

    def __init__(self, product: str, *, rounds: int, say: Callable[[str], None]) -> None:
        self.product = product
        self.rounds = rounds
        self.say = say
        self.rows: list[Row] = []

    def run(self) -> list[Row]:
        """Measure everything."""
        real = self.product == "Incus"
        cluster = LabCluster.in_namespaces(3, prefix="stb" if real else "sta", real=real)
        try:
            cluster.form()
            cluster.wait_until_healthy(120)
            with tiny_image() as image:
                client(cluster.members[0], "image", "import", str(image), "--alias", IMAGE)
            self._shared(cluster)
            self._launches(cluster)
            self._lists(cluster)
            return self.rows
        finally:
            cluster.destroy()

    def add(self, what: str, values: list[float], budget: float | None = None) -> None:
        """Keep and say one row of seconds."""
        self.rows.append(sample(what, self.product, "s", values, budget))
        row = self.rows[-1]
        self.say(f"{self.product:13} {what}: p50 {row.p50:.3f} s, p99 {row.p99:.3f} s (n={row.samples})")

    def _shared(self, cluster: LabCluster) -> None:
        one = cluster.members[0]
        made: dict[str, list[float]] = {"dir": [], "btrfs": [], "network": []}
        for number in range(self.rounds):
            for driver in ("dir", "btrfs"):
                name = f"{driver}{number}"
                for member in MEMBERS:
                    size = ["size=150MiB"] if driver == "btrfs" else []
                    client(one, "storage", "create", name, driver, *size, "--target", member)
                made[driver].append(client(one, "storage", "create", name, driver))
                client(one, "storage", "delete", name)
            try:
                made["network"].append(self._network(cluster, f"br{number}x"))
            except RuntimeError as problem:
                if self.product != "Incus":
                    raise
                self.say(f"{self.product:13} bridge network: not measured: {problem}")
        for what, values in made.items():
            if not values:
                continue
            name = "bridge network" if what == "network" else f"{what} pool"
            self.add(f"final creation of a {name} over three members", values, 0.5)

    def _network(self, cluster: LabCluster, name: str) -> float:
        one = cluster.members[0]
        for member in MEMBERS:
            client(one, "network", "create", name, "--target", member)
        took = client(one, "network", "create", name, "ipv4.address=10.88.8.1/24", "ipv6.address=none")
        client(one, "network", "delete", name)
        return took

    def _launches(self, cluster: LabCluster) -> None:
        one = cluster.members[0]
        for member in MEMBERS:
            client(one, "storage", "create", "fast", "btrfs", "size=600MiB", "--target", member)
        client(one, "storage", "create", "fast", "btrfs")
        client(one, "launch", IMAGE, "warm", "-s", "fast", "--target", "m1")
        launched = [client(one, "launch", IMAGE, f"c{n}", "-s", "fast", "--target", "m1") for n in range(self.rounds)]
        self.add("launch from a cached image on btrfs", launched, 0.25)
        client(one, "delete", "-f", "warm", *(f"c{n}" for n in range(self.rounds)))

    def _lists(self, cluster: LabCluster) -> None:
        one = cluster.members[0]
        for number in range(VOLUMES):
            target = f"m{number % 3 + 1}"
            one.client.run(
                "POST",
                f"/1.0/storage-pools/default/volumes/custom?target={target}",
                {"name": f"v{number}", "config": {}},
            )
        listed = [client(one, "storage", "volume", "list", "default") for _ in range(10)]
        self.add(f"`incus storage volume list` of {VOLUMES} volumes", listed, 0.1)
