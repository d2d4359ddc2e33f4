"""The same closed loops on etcd and PySyncObj, three members on this machine, for benchmarks/consensus.py.

What is not comparable: etcd is Go, asked over HTTP/JSON from another process, and keeps keys and values; PySyncObj is
asked inside its leader's process and keeps a dict in memory. Durability is: etcd as shipped (fsync before it acknowledges);
PySyncObj twice, as shipped (its journal is never synced) and with an msync for each append. Each is skipped, with the
reason, where it isn't installed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import importlib.util
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KEYS = 10_000
VALUE = b"v" * 200
CLIENTS = (1, 8, 64)
Row = dict[str, Any]
Summary = Callable[[list[float], float], Row]


# -- etcd -------------------------------------------------------------------------------------------------------------


def etcd_missing() -> str:
    """Return why etcd can't be measured, "" if it can."""
    return "" if shutil.which("etcd") else "etcd is not installed (Debian: etcd-server)"


@contextlib.contextmanager
def etcd_cluster(root: Path) -> Iterator[list[str]]:
    """Run three members; give the URLs of their clients, the leader's first."""
    base = 23000 + secrets.randbelow(1000) * 6
    names = ["e1", "e2", "e3"]
    peers = {name: f"http://127.0.0.1:{base + 2 * i}" for i, name in enumerate(names)}
    clients = {name: f"http://127.0.0.1:{base + 2 * i + 1}" for i, name in enumerate(names)}
    together = ",".join(f"{name}={url}" for name, url in peers.items())
    running = []
    try:
        for name in names:
            command = ["etcd", "--name", name, "--data-dir", str(root / name), "--log-level", "error"]
            command += ["--initial-advertise-peer-urls", peers[name], "--listen-peer-urls", peers[name]]
            command += ["--advertise-client-urls", clients[name], "--listen-client-urls", clients[name]]
            command += ["--initial-cluster", together, "--initial-cluster-state", "new"]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        yield asyncio.run(_leader_first(list(clients.values())))
    finally:
        for process in running:
            process.kill()
            process.wait()


async def _leader_first(urls: list[str]) -> list[str]:
    import aiohttp

    deadline = time.monotonic() + 30
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            leaders = []
            for url in urls:
                with contextlib.suppress(aiohttp.ClientError, KeyError):
                    async with session.post(f"{url}/v3/maintenance/status", json={}) as response:
                        status = await response.json(content_type=None)
                        if status["leader"] == status["header"]["member_id"]:
                            leaders.append(url)
            if len(leaders) == 1:
                return [leaders[0], *(url for url in urls if url != leaders[0])]
            await asyncio.sleep(0.2)
    raise RuntimeError("etcd elected no leader within 30 s")


async def _etcd_loop(url: str, what: str, clients: int, seconds: float, summary: Summary) -> Row:
    import aiohttp

    took: list[float] = []
    begun = time.perf_counter()

    async def client(session: aiohttp.ClientSession, seed: int) -> None:
        key = seed
        while time.perf_counter() < begun + seconds:
            key = (key * 31 + 7) % KEYS
            body = {"key": base64.b64encode(str(key).encode()).decode()}
            if what == "write":
                body["value"] = base64.b64encode(VALUE).decode()
            begin = time.perf_counter()
            async with session.post(f"{url}/v3/kv/{'put' if what == 'write' else 'range'}", json=body) as response:
                await response.read()
                if response.status != 200:
                    raise RuntimeError(f"etcd answers {response.status}")
            took.append((time.perf_counter() - begin) * 1e3)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, seed) for seed in range(clients)))
    return summary(took, time.perf_counter() - begun)


def etcd_rows(seconds: float, summary: Summary) -> list[Row]:
    """Return the rows of etcd."""
    rows = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as root, etcd_cluster(Path(root)) as urls:
        for where, url in (("etcd leader", urls[0]), ("etcd follower", urls[1])):
            for what in ("write", "read"):
                for clients in CLIENTS:
                    found = asyncio.run(_etcd_loop(url, what, clients, seconds, summary))
                    rows.append({"where": where, "what": what, "clients": clients, **found})
    return rows


# -- PySyncObj --------------------------------------------------------------------------------------------------------


def pysyncobj_missing() -> str:
    """Return why PySyncObj can't be measured, "" if it can."""
    return "" if importlib.util.find_spec("pysyncobj") else "PySyncObj is not installed (pip install pysyncobj)"


def pysyncobj_member(directory: Path, number: int, base: int, *, synced: bool) -> None:
    """Be one member: wait for commands on stdin, answer on stdout."""
    from pysyncobj import SyncObj, SyncObjConf, journal, replicated

    if synced:
        add = journal.FileJournal.add

        def add_and_sync(self: Any, command: Any, idx: int, term: int) -> None:
            add(self, command, idx, term)
            self.flush()

        journal.FileJournal.add = add_and_sync

    class Table(SyncObj):  # type: ignore[misc]
        def __init__(self) -> None:
            addresses = [f"127.0.0.1:{base + i}" for i in range(3)]
            own = addresses.pop(number)
            super().__init__(own, addresses, SyncObjConf(journalFile=str(directory / f"{number}.journal")))
            self.rows: dict[int, bytes] = {}

        @replicated  # type: ignore[untyped-decorator]
        def put(self, key: int, value: bytes) -> None:
            self.rows[key] = value

    table = Table()
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "leads":
            print(json.dumps(bool(table._isLeader())), flush=True)  # noqa: SLF001  # it has no public name for this
        else:
            print(json.dumps(_pysyncobj_loop(table, command["clients"], command["seconds"])), flush=True)


def _pysyncobj_loop(table: Any, clients: int, seconds: float) -> Row:
    took: list[float] = []
    begun = time.perf_counter()

    def client(seed: int) -> None:
        key = seed
        while time.perf_counter() < begun + seconds:
            key = (key * 31 + 7) % KEYS
            begin = time.perf_counter()
            table.put(key, VALUE, sync=True, timeout=10)
            took.append((time.perf_counter() - begin) * 1e3)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"took": took, "seconds": time.perf_counter() - begun}


def pysyncobj_rows(seconds: float, summary: Summary, *, synced: bool) -> list[Row]:
    """Return the rows of PySyncObj, asked on its leader."""
    where = "PySyncObj, msync" if synced else "PySyncObj, no sync"
    base = 30000 + secrets.randbelow(1000) * 3
    rows = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as root:
        command = [sys.executable, __file__, "--member", root, "--base", str(base), *(["--synced"] if synced else [])]
        members = [
            subprocess.Popen([*command, "--number", str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for n in range(3)
        ]
        try:
            leader = _pysyncobj_leader(members)
            for clients in CLIENTS:
                found = _ask(leader, do="measure", clients=clients, seconds=seconds)
                rows.append(
                    {"where": where, "what": "write", "clients": clients, **summary(found["took"], found["seconds"])}
                )
        finally:
            for process in members:
                process.kill()
                process.wait()
    return rows


def _pysyncobj_leader(members: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in members:
            if _ask(process, do="leads"):
                time.sleep(1)
                return process
        time.sleep(0.2)
    raise RuntimeError("PySyncObj elected no leader within 30 s")


def _ask(process: subprocess.Popen[str], **command: Any) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(command) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main() -> None:
    """Be a member of PySyncObj."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--member", type=Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--base", type=int, required=True)
    parser.add_argument("--synced", action="store_true")
    arguments = parser.parse_args()
    pysyncobj_member(arguments.member, arguments.number, arguments.base, synced=arguments.synced)


if __name__ == "__main__":
    main()
