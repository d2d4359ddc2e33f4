"""Clusters of lab members, ours or real Incus, formed through the same REST calls.

Owns forming, finding the leader and waiting for health; called by demo, benchmarks and tests. Must never
treat one product kindlier than the other.
"""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from incus_actors.lab import debris
from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.network import NetworkLab
from incus_actors.lab.processes import OWN_DAEMON, LabMember

STANDBYS = 2
REAL_DAEMON = Path("/usr/libexec/incus/incusd")


def wait_for(check: Callable[[], Any], what: str, *, timeout_s: float = 60.0, every_s: float = 0.05) -> Any:
    """Return the first true answer of `check`, which may fail meanwhile. Raises TimeoutError with its last words."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = check()
        except (OSError, RequestFailedError, ValueError) as problem:
            last = problem
        else:
            if answer:
                return answer
            last = answer
        time.sleep(every_s)
    raise TimeoutError(f"{what}: not within {timeout_s:g} s (last: {last})")


@dataclass
class LabCluster:
    """Members of one cluster on this machine, each in a network namespace when there is a network."""

    members: list[LabMember]
    product: str = "incus_actors"
    network: NetworkLab | None = None
    directory: Path | None = None
    _join_seconds: list[float] = field(default_factory=list)

    @classmethod
    def on_loopback(
        cls, count: int, directory: Path, *, first_port: int = 8443, environment: dict[str, str] | None = None
    ) -> LabCluster:
        """Make `count` members on 127.0.0.1 with ports from `first_port`, not started; needs no root."""
        members = [
            LabMember(f"m{i}", directory / f"m{i}", "127.0.0.1", first_port + i - 1, environment=environment or {})
            for i in range(1, count + 1)
        ]
        return cls(members, directory=directory)

    @classmethod
    def in_namespaces(
        cls,
        count: int,
        *,
        prefix: str,
        real: bool = False,
        environment: dict[str, str] | None = None,
    ) -> LabCluster:
        """Make `count` members in namespaces, not started; `real` for Incus' own daemon. Needs root."""
        network = NetworkLab(prefix, count)
        network.up()
        directory = Path(tempfile.mkdtemp(prefix=f"{prefix}-"))
        directory.chmod(0o755)  # mapped roots of unprivileged containers must pass
        command = (str(REAL_DAEMON), "--group", "root") if real else OWN_DAEMON
        members = [
            LabMember(
                f"m{i}",
                directory / f"m{i}",
                network.address(i),
                enter=network.enter(i),
                command=command,
                environment=environment or {},
            )
            for i in range(1, count + 1)
        ]
        return cls(members, "Incus" if real else "incus_actors", network, directory)

    def form(self, joiners: int | None = None) -> None:
        """Start all, bootstrap the first, join the others one after the other with tokens."""
        for member in self.members:
            member.start()
        for member in self.members:
            member.wait_until_ready(60)
        self.bootstrap()
        for member in self.members[1 : None if joiners is None else joiners + 1]:
            self._join_seconds.append(self.join(member))

    def bootstrap(self) -> float:
        """Make the first member a cluster of one; return the seconds it took."""
        first = self.members[0]
        begin = time.monotonic()
        first.client.run("PATCH", "/1.0", {"config": {"core.https_address": first.https_address}})
        pools = first.client.get("/1.0/storage-pools")
        if not pools:
            first.client.run("POST", "/1.0/storage-pools", {"name": "default", "driver": "dir", "config": {}})
            device = {"root": {"type": "disk", "path": "/", "pool": "default"}}
            first.client.run("PATCH", "/1.0/profiles/default", {"devices": device})
        first.client.run(
            "PUT",
            "/1.0/cluster",
            {"server_name": first.name, "enabled": True, "cluster_address": "", "cluster_token": ""},
        )
        return time.monotonic() - begin

    def join(self, member: LabMember, *, through: LabMember | None = None) -> float:
        """Join one member with a fresh token of another one; return the seconds from the request to its end."""
        first = through or next(m for m in self.members if m.running and m is not member)
        operation = first.client.request("POST", "/1.0/cluster/members", {"server_name": member.name})
        facts = operation["metadata"]
        token = {
            "server_name": facts["serverName"],
            "fingerprint": facts["fingerprint"],
            "addresses": facts["addresses"],
            "secret": facts["secret"],
            "expires_at": facts["expiresAt"],
        }
        certificate = first.client.get("/1.0")["environment"]["certificate"]
        request = {
            "server_name": member.name,
            "enabled": True,
            "member_config": [],
            "cluster_address": facts["addresses"][0],
            "cluster_certificate": certificate,
            "server_address": member.https_address,
            "cluster_token": base64.b64encode(json.dumps(token).encode()).decode(),
        }
        begin = time.monotonic()
        member.client.run("PUT", "/1.0/cluster", request, timeout_s=60)
        return time.monotonic() - begin

    def online(self) -> list[LabMember]:
        """Return the members whose process runs."""
        return [m for m in self.members if m.running]

    def leader(self) -> LabMember | None:
        """Return the member that the others show as database-leader; None while there is none."""
        for member in self.online():
            try:
                rows = member.client.get("/1.0/cluster/members?recursion=1", timeout_s=5)
            except (OSError, RequestFailedError, ValueError):
                continue
            for row in rows:
                if "database-leader" in row["roles"]:
                    found = next((m for m in self.members if m.name == row["server_name"]), None)
                    if found is not None and found.running:
                        return found
        return None

    def healthy(self) -> bool:
        """Whether every member sees every member online, with one leader and as many voters as can be."""
        wanted = min(3, len(self.members)) if len(self.members) > 2 else 1
        for member in self.members:
            rows = member.client.get("/1.0/cluster/members?recursion=1", timeout_s=5)
            voters = sum("database" in row["roles"] for row in rows)
            leaders = sum("database-leader" in row["roles"] for row in rows)
            if len(rows) != len(self.members) or any(row["status"] != "Online" for row in rows):
                return False
            if leaders != 1 or voters < wanted:
                return False
        return True

    def settled(self) -> bool:
        """Whether every role is taken: nobody is left over while there are fewer than two standbys."""
        rows = self.online()[0].client.get("/1.0/cluster/members?recursion=1", timeout_s=5)
        voters, standbys = (sum(role in row["roles"] for row in rows) for role in ("database", "database-standby"))
        return bool(voters + standbys >= min(len(rows), voters + STANDBYS))

    def wait_until_healthy(self, timeout_s: float = 90.0) -> None:
        """Raises TimeoutError."""
        wait_for(self.healthy, f"{self.product} healthy", timeout_s=timeout_s, every_s=0.2)

    def destroy(self) -> None:
        """End the processes that this lab started and remove what it made."""
        for member in self.members:
            if member.running:
                member.kill()
        if self.directory is not None:
            debris.remove(self.directory)  # containers are found by the directories of their members
        if self.network is not None:
            self.network.down()
