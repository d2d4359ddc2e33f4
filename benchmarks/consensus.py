"""Latency and throughput at the consensus interface: three member processes, CURVE, real disks.

Run `python benchmarks/consensus.py [--seconds 2] [--repetitions 5] [--others] [--json FILE]`. Each member is a process of its
own; the clients of a row run inside the member that is measured, in a closed loop, as services do; one row of writes is an
open loop at half of what 64 clients reached. `--others` adds etcd and
PySyncObj, in turn with ours (consensus_others.py says what is comparable). Told are medians and ranges over the repetitions,
with the load and the speed of the disk before each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repetitions import Row, System, percentiles, repeated

from incus_actors.consensus.bootstrap import create_joiner, create_standalone
from incus_actors.consensus.configuration import decode_configuration, encode_configuration
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import Configuration, Member, Role
from incus_actors.errors import UnavailableError
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.transport.address import PeerAddress, format_address
from incus_actors.transport.control_lane import ControlLane
from incus_actors.transport.keys import load_or_create_curve_keys

TABLE = "CREATE TABLE kv (key INTEGER PRIMARY KEY, value BLOB) STRICT"
PUT = "INSERT INTO kv VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
OPEN = "write, open loop"
KEYS = 10_000
VALUE = b"v" * 200
WHERE = Path("/var/tmp")  # not a tmpfs: syncs must be real


async def measure(runtime: ConsensusRuntime, what: str, clients: int, seconds: float) -> dict[str, Any]:
    """Run a closed loop of `clients` for `seconds`; `what` is "write" or "read"."""
    took: list[float] = []
    deadline = time.perf_counter() + seconds

    async def client(seed: int) -> None:
        key = seed
        while time.perf_counter() < deadline:
            key = (key * 31 + 7) % KEYS
            begin = time.perf_counter()
            if what == "write":
                await runtime.propose(Transaction((Statement(PUT, (key, VALUE)),)))
            else:
                await runtime.read_barrier()
                runtime.database.one("SELECT value FROM kv WHERE key = ?", (key,))
            took.append((time.perf_counter() - begin) * 1000)

    begin = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return {**summary(took, time.perf_counter() - begin), "count": len(took)}


async def measure_open(runtime: ConsensusRuntime, per_second: int, seconds: float) -> dict[str, Any]:
    """Write at a fixed rate, whatever the answers do; a write's time begins when it was due, so that what waits behind
    a slow one is counted (a closed loop asks less when it is answered late: coordinated omission). What is refused because
    too much waits already is told by number."""
    took: list[float] = []
    refused = 0
    begin = time.perf_counter()

    async def write(number: int, due: float) -> None:
        nonlocal refused
        try:
            await runtime.propose(Transaction((Statement(PUT, (number * 31 % KEYS, VALUE)),)))
        except UnavailableError:
            refused += 1
        else:
            took.append((time.perf_counter() - due) * 1000)

    async with asyncio.TaskGroup() as writes:
        for number in range(round(per_second * seconds)):
            due = begin + number / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writes.create_task(write(number, due))
    return {**summary(took, time.perf_counter() - begin), "offered": per_second, "refused": refused, "count": len(took)}


def summary(took_ms: list[float], seconds: float) -> dict[str, Any]:
    """Return what is told of one closed loop."""
    return {"per_second": round(len(took_ms) / seconds), **percentiles(took_ms)}


class Commands:
    """What a member process does when it is told to: each method is a command."""

    def __init__(self, directory: Path, port: int) -> None:
        keys = load_or_create_curve_keys(directory)
        self._database = directory / "database"
        self._address = format_address(PeerAddress("127.0.0.1", port, port + 1, keys.public_hex))
        self._runtime = ConsensusRuntime(self._database, lambda: ControlLane(keys, "127.0.0.1", port))

    async def address(self) -> str:
        """Return where the member can be reached."""
        return self._address

    async def create(self) -> None:
        """Be a cluster of one."""
        create_standalone(self._database, address=self._address, cluster_id=bytes(16))
        await self.start()
        await self._runtime.propose(Transaction((Statement(TABLE),), schema=True))

    async def join(self, member: int, configuration: str) -> None:
        """Be a member of a cluster that has accepted this one."""
        known = decode_configuration(configuration.encode())
        create_joiner(self._database, cluster_id=bytes(16), epoch=1, member_id=member, configuration=known)
        await self.start()

    async def start(self) -> None:
        """Take part."""
        await self._runtime.start()

    async def stop(self) -> None:
        """Take part no more."""
        await self._runtime.stop(handover=False)

    async def members(self, configuration: str) -> None:
        """Change the configuration."""
        await self._runtime.change_configuration(decode_configuration(configuration.encode()).old)

    async def measure(self, what: str, clients: int, seconds: float) -> dict[str, Any]:
        """Run a closed loop."""
        return await measure(self._runtime, what, clients, seconds)

    async def measure_open(self, per_second: int, seconds: float) -> dict[str, Any]:
        """Write at a fixed rate."""
        return await measure_open(self._runtime, per_second, seconds)

    async def cpu(self) -> float:
        """Return the seconds of CPU that this process has used."""
        return time.process_time()

    async def fill(self, first: int, keys: int, size: int) -> None:
        """Write so many keys, of so many bytes each, 64 at a time."""
        for begin in range(first, first + keys, 64):
            batch = range(begin, min(begin + 64, first + keys))
            await asyncio.gather(
                *(
                    self._runtime.propose(Transaction((Statement(PUT, (key, bytes([key % 251]) * size)),)))
                    for key in batch
                )
            )

    async def status(self) -> dict[str, Any]:
        """Return indexes and sizes."""
        status = self._runtime.status()
        sizes = {p.name: p.stat().st_size for p in self._database.glob("*.db*")}
        return {
            "first": status.first,
            "last": status.last,
            "applied": status.applied,
            "log_bytes": sum(size for name, size in sizes.items() if name.startswith("log.")),
            "state_bytes": sum(size for name, size in sizes.items() if name.startswith("global-")),
            "answers": self._runtime.database.scalar("SELECT COUNT(*) FROM _sessions"),
        }


async def member(directory: Path, port: int) -> None:
    """A member that does what it reads from its standard input, one JSON command a line."""
    commands = Commands(directory, port)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        answer = await getattr(commands, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)
    await commands.stop()


class Process:
    """A member process."""

    def __init__(self, root: Path, number: int, port: int) -> None:
        directory = root / str(number)
        directory.mkdir()
        self.number = number
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--member", str(directory), "--port", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a command, return its answer."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the member has no pipes")
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"member {self.number} has died")
        return json.loads(line)

    def close(self) -> None:
        """Let it end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=30)


@contextmanager
def processes() -> Iterator[list[Process]]:
    """Give three members that are no cluster yet; the first is a cluster of its own."""
    base = 21000 + secrets.randbelow(2000) * 4
    with tempfile.TemporaryDirectory(dir=WHERE) as root:
        members = [Process(Path(root), number, base + 4 * number) for number in (1, 2, 3)]
        try:
            members[0].ask("create")
            yield members
        finally:
            for process in members:
                process.close()


def make_cluster(members: list[Process]) -> None:
    """Have the second and third join the first, and make all of them voters."""
    addresses = [process.ask("address") for process in members]
    first = members[0]
    known: tuple[Member, ...] = (Member(1, addresses[0]),)
    for number in (2, 3):
        known = (*known, Member(number, addresses[number - 1], Role.STANDBY))
        text = encode_configuration(Configuration(known)).decode()
        first.ask("members", configuration=text)
        members[number - 1].ask("join", member=number, configuration=text)
    voters = tuple(Member(number, addresses[number - 1]) for number in (1, 2, 3))
    first.ask("members", configuration=encode_configuration(Configuration(voters)).decode())


def run(seconds: float) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows: list[dict[str, Any]] = []
    with processes() as members:
        rows += measured(members, members[0], "one member", seconds)
        make_cluster(members)
        rows += measured(members, members[0], "leader of three", seconds)
        rows += measured(members, members[1], "follower of three", seconds)
    return rows


def long(writes: int) -> list[dict[str, Any]]:
    """Write so many times and tell how large logs and states get meanwhile, and how many answers are kept."""
    rows: list[dict[str, Any]] = []
    with processes() as members:
        make_cluster(members)
        begin, last = time.perf_counter(), 0
        while last < writes:
            members[0].ask("measure", what="write", clients=256, seconds=10)
            logs = [process.ask("status") for process in members]
            last = logs[0]["last"]
            row = {
                "writes": last,
                "seconds": round(time.perf_counter() - begin),
                "entries_kept": [log["last"] - log["first"] + 1 for log in logs],
                "log_mib": [round(log["log_bytes"] / 2**20, 1) for log in logs],
                "state_mib": [round(log["state_bytes"] / 2**20, 1) for log in logs],
                "answers": [log["answers"] for log in logs],
            }
            rows.append(row)
            text = "{writes:8} writes after {seconds:4} s: {entries_kept} entries kept, logs of {log_mib} MiB, "
            print((text + "states of {state_mib} MiB with {answers} answers").format(**row), flush=True)
    return rows


def measured(members: list[Process], process: Process, where: str, seconds: float) -> list[Row]:
    """Measure one member with 1, 8 and 64 clients, and writes at half of the rate that the last of these reached; CPU is
    that of all members, with the clients' in it."""
    rows: list[Row] = []

    def one(row: Row, do: str, **arguments: Any) -> Row:
        before = sum(each.ask("cpu") for each in members)
        answer = process.ask(do, **arguments, seconds=seconds)
        spent = sum(each.ask("cpu") for each in members) - before
        answer["cpu_s_per_1000"] = round(1000 * spent / answer.pop("count"), 3)
        rows.append({"where": where, **row, **answer})
        show(rows[-1])
        return rows[-1]

    for what in ("write", "read"):
        for clients in (1, 8, 64):
            last = one({"what": what, "clients": clients}, "measure", what=what, clients=clients)
        if what == "write":
            one({"what": OPEN, "clients": 0}, "measure_open", per_second=last["per_second"] // 2)
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    text = "{where:19} {what:16} "
    text += "at {offered:5.0f}/s    " if "offered" in row else "{clients:3} clients "
    text += "{per_second:8}/s  p50 {p50_ms:7} ms  p99 {p99_ms:7} ms  p99.9 {p999_ms:7} ms"
    if row.get("refused"):
        text += "  {refused} refused"
    if "cpu_s_per_1000" in row:
        text += "  {cpu_s_per_1000:6} s of CPU for 1000"
    if "range" in row:
        text += "  ({range[per_second][0]} to {range[per_second][1]}/s)"
    print(text.format(**row), flush=True)


def others(seconds: float) -> list[System]:
    """Return etcd and PySyncObj; say which are not here."""
    import consensus_others as them

    systems: list[tuple[str, str, Callable[[], list[Row]]]] = [
        ("etcd", them.etcd_missing(), lambda: them.etcd_rows(seconds, summary)),
        ("PySyncObj", them.pysyncobj_missing(), lambda: them.pysyncobj_rows(seconds, summary, synced=False)),
        ("PySyncObj, synced", them.pysyncobj_missing(), lambda: them.pysyncobj_rows(seconds, summary, synced=True)),
    ]
    for name, missing, _ in systems:
        if missing:
            print(f"{name} is not measured: {missing}")
    return [(name, shown(measure_it)) for name, missing, measure_it in systems if not missing]


def shown(measure_it: Callable[[], list[Row]]) -> Callable[[], list[Row]]:
    """Print rows as soon as they are there."""

    def call() -> list[Row]:
        rows = measure_it()
        for row in rows:
            show(row)
        return rows

    return call


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--repetitions", type=int, default=5, help="of everything; systems take turns")
    parser.add_argument("--others", action="store_true", help="etcd and PySyncObj too")
    parser.add_argument("--long", type=int, metavar="N", help="only: N writes, and how large files get")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--member", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.member is not None:
        asyncio.run(member(arguments.member, arguments.port))
        return
    if arguments.long:
        rows, conditions = long(arguments.long), list[Row]()
    else:
        systems: list[System] = [("incus_actors", lambda: run(arguments.seconds))]
        if arguments.others:
            systems += others(arguments.seconds)
        rows, conditions = repeated(systems, arguments.repetitions, WHERE)
        print(f"-- medians of {arguments.repetitions}, and the range of what was done in a second")
        for row in rows:
            show(row)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
