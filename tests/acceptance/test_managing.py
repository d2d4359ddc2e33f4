"""Living in a cluster, with the stock client: its certificate, its databases, members that fall silent."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import subprocess
import threading
import time
from pathlib import Path

from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.processes import LabMember
from incus_actors.security import certificates


def shown_on_the_wire(member: LabMember) -> str:
    """The fingerprint that a client of this member sees (the lab's bridge is on this host)."""
    pem = ssl.get_server_certificate((member.address, member.port), timeout=5)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def new_pair(directory: Path) -> tuple[Path, Path, str]:
    certificate, key = certificates.make_certificate("cluster")
    paths = directory / "new.crt", directory / "new.key"
    for path, text in zip(paths, (certificate, key), strict=True):
        path.write_text(text)
    return *paths, certificates.fingerprint_pem(certificate)


def test_another_certificate_without_dropping_the_cluster(fresh_cluster: LabCluster, incus_on, tmp_path) -> None:
    one, two, three = fresh_cluster.members
    incus = incus_on(two)
    crt, key, wanted = new_pair(tmp_path)
    assert "PEM inputs may have been switched" in incus.fails("cluster", "update-certificate", str(key), str(crt))
    three.kill()
    out = incus("cluster", "update-certificate", str(crt), str(key))
    assert out == "Successfully updated cluster certificates\n"
    assert shown_on_the_wire(two) == wanted
    wait_for(lambda: shown_on_the_wire(one) == wanted, "the other member shows it", timeout_s=5)
    assert incus("config", "set", "user.after=yes", "--target", one.name) == ""
    three.start()
    three.wait_until_ready()
    wait_for(lambda: shown_on_the_wire(three) == wanted, "the returned member shows it", timeout_s=10)
    fresh_cluster.wait_until_healthy()
    # Requests from member to member go on, in every direction.
    for here in fresh_cluster.members:
        for there in fresh_cluster.members:
            incus_on(here)("cluster", "info", there.name)
    secret = key.read_text().splitlines()[3].encode()
    for member in fresh_cluster.members:
        holders = [f for f in (member.directory / "database").rglob("*") if f.is_file() and secret in f.read_bytes()]
        assert not holders
        assert "END RSA PRIVATE" not in member.log.read_text()
        assert "PRIVATE KEY" not in member.log.read_text()


def test_the_databases_can_be_read_and_the_global_one_written(cluster: LabCluster, incus_on) -> None:
    one, two, _ = (incus_on(m) for m in cluster.members)
    assert one("admin", "sql", "global", "SELECT name FROM nodes ORDER BY id", "-f", "csv") == "m1\nm2\nm3\n"
    assert "| 3 |" in two("admin", "sql", "global", "-", input="SELECT count(*) AS n FROM nodes;")
    assert one.fails("admin", "sql", "global", "SELECT nope FROM nodes") == (
        "Error: Failed to execute query: no such column: nope"
    )
    out = two("admin", "sql", "global", "INSERT INTO config (key, value) VALUES ('user.sql', 'x')")
    assert out == "Rows affected: 1\n"
    assert one("config", "get", "user.sql") == "x\n"
    assert two("admin", "sql", "global", "DELETE FROM config WHERE key = 'user.sql'") == "Rows affected: 1\n"
    assert one("config", "get", "user.sql") == "\n"
    assert one("admin", "sql", "global", ".sync") == ""
    assert "CREATE TABLE" in one("admin", "sql", "global", ".schema")
    assert 'INSERT INTO "nodes"' in one("admin", "sql", "global", ".dump")
    rows = two("admin", "sql", "local", "SELECT address, role, name FROM raft_nodes", "-f", "csv").splitlines()
    assert rows == [f"{m.https_address},0,{m.name}" for m in cluster.members]
    assert "DELETE" not in one.fails("admin", "sql", "global", "DROP TABLE nodes")


def test_a_silent_member_is_offline_and_nobody_waits_for_it(fresh_cluster: LabCluster, incus_on) -> None:
    one, two, three = fresh_cluster.members
    incus = incus_on(one)
    assert incus.fails("config", "set", "cluster.offline_threshold=0") == (
        "Error: cannot set 'cluster.offline_threshold' to '0': Value must be greater than '0'"
    )
    incus("config", "set", "cluster.offline_threshold=1")
    time.sleep(2.5)  # nobody flaps
    rows = json.loads(incus("cluster", "list", "-f", "json"))
    assert [row["status"] for row in rows] == ["Online"] * 3
    assert fresh_cluster.network is not None
    fresh_cluster.network.cut(3)

    def row() -> dict[str, str]:
        rows = json.loads(incus("cluster", "list", "-f", "json"))
        return next(row for row in rows if row["server_name"] == three.name)

    wait_for(lambda: row()["status"] == "Offline", "offline", timeout_s=10)
    assert re.fullmatch(r"No heartbeat for [\dms.]+s \(\d{4}-\d\d-\d\d [\d:.]+ \+0000 UTC\)", row()["message"])
    for command in (
        ("cluster", "info", three.name),
        ("info", "--target", three.name),
        ("config", "set", "user.x=1", "--target", three.name),
        ("launch", "--empty", "c9", "--target", three.name),
    ):
        begin = time.monotonic()
        answer = incus.fails(*command)
        assert time.monotonic() - begin < 5, command  # at once, where nobody else works: never after a time-out
        assert "m3 is offline" in answer, command
    begin = time.monotonic()
    incus("cluster", "list")
    assert time.monotonic() - begin < 5
    assert incus("cluster", "show", three.name)
    assert incus("cluster", "set", three.name, "user.a=1") == ""
    wait_for(lambda: "Offline cluster member" in incus("warning", "list"), "a warning", timeout_s=5)
    fresh_cluster.network.heal(3)
    wait_for(lambda: row()["status"] == "Online", "online again", timeout_s=20)
    wait_for(lambda: "Offline cluster member" not in incus("warning", "list"), "no warning", timeout_s=5)
    assert incus_on(two)("cluster", "info", three.name)


class Writer(threading.Thread):
    """Writes through one member until told to stop; every refusal is kept."""

    def __init__(self, member: LabMember) -> None:
        super().__init__(daemon=True)
        self.member = member
        self.ended = threading.Event()
        self.written = 0
        self.failures: list[str] = []
        self.longest_s = 0.0

    def run(self) -> None:
        while not self.ended.wait(0.01):
            begin = time.monotonic()
            try:
                self.member.client.request("PATCH", "/1.0/profiles/default", {"description": str(self.written)})
                self.written += 1
            except (OSError, RequestFailedError) as error:
                self.failures.append(str(error))
            self.longest_s = max(self.longest_s, time.monotonic() - begin)


def test_a_member_moves_to_another_address_while_the_cluster_writes(fresh_cluster: LabCluster, incus_on) -> None:
    one, two, three = fresh_cluster.members
    incus = incus_on(one)
    address = two.address.rpartition(".")[0] + ".102"
    leader = fresh_cluster.leader()
    assert leader is not None
    assert leader.name == one.name
    assert "Cannot listen" in incus.fails(
        "config", "set", f"cluster.https_address={address}:8443", "--target", two.name
    )
    assert "wildcard" in incus.fails("config", "set", "cluster.https_address=[::]:8443", "--target", two.name).lower()
    assert incus.fails("config", "unset", "cluster.https_address", "--target", two.name) == (
        "Error: Changing cluster.https_address is currently not supported"
    )
    for member, new in ((two, address), (one, one.address.rpartition(".")[0] + ".101")):
        where = ["ip", "addr", "add", f"{new}/24", "dev"]
        device = _device(member)
        subprocess.run([*member.enter, *where, device], check=True)
        writer = Writer(three)
        writer.start()
        time.sleep(0.3)
        incus("config", "set", f"cluster.https_address={new}", "--target", member.name)
        time.sleep(1.0)
        writer.ended.set()
        writer.join()
        assert writer.failures == []
        assert writer.written > 20
        assert writer.longest_s < 2.0
        urls = {row["server_name"]: row["url"] for row in json.loads(incus("cluster", "list", "-f", "json"))}
        assert urls[member.name] == f"https://{new}:8443"
    fresh_cluster.wait_until_healthy()
    # The old address goes: whoever comes back finds the member at the new one, itself included.
    subprocess.run([*two.enter, "sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1"], check=True)
    subprocess.run([*two.enter, "ip", "addr", "del", f"{two.address}/24", "dev", _device(two)], check=True)
    incus("config", "set", f"core.https_address={address}", "--target", two.name)
    two.stop()
    two.start()
    two.wait_until_ready()
    fresh_cluster.wait_until_healthy()
    three.stop()
    three.start()
    three.wait_until_ready()
    fresh_cluster.wait_until_healthy()
    for here in fresh_cluster.members:
        for there in fresh_cluster.members:
            incus_on(here)("cluster", "info", there.name)


def _device(member: LabMember) -> str:
    out = subprocess.run([*member.enter, "ip", "-br", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    line = next(line for line in out.splitlines() if member.address in line)
    return line.split()[0].partition("@")[0]
