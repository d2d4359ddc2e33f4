"""A member on a real file system that runs full, and gets space again."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from incus_actors.consensus import engine, opening
from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.log_files import LogFullError
from incus_actors.consensus.opening import open_member
from incus_actors.consensus.types import Limits
from incus_actors.errors import UnavailableError
from incus_actors.model.transaction import Outcome, Statement, Transaction

from .runtime_kit import TABLE, applied, standalone, until

TINY = Limits(min_free_kib=0)
pytestmark = pytest.mark.real


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def blob(number: int) -> Transaction:
    return Transaction((Statement("INSERT INTO t (a, at) VALUES (?, hex(zeroblob(20000)))", (number,)),))


async def test_a_full_disk_loses_nothing_and_ends_by_itself(small: Path) -> None:
    limits = Limits(min_free_kib=0, retained_entries=100_000, log_bytes=1 << 40)
    reasons: list[str] = []
    acknowledged: list[int] = []
    async with standalone(small / "database", limits=limits) as runtime:
        runtime.on_fatal = reasons.append
        await applied(runtime, TABLE)
        (small / "balloon").write_bytes(b"\0" * (6 << 20))
        unsure = 0
        for number in range(2000):
            try:
                outcome: Outcome = await runtime.propose(blob(number), timeout_s=0.5)
            except UnavailableError as error:
                unsure += 1
                last = str(error)
                if unsure == 2:
                    break
            else:
                assert outcome.applied
                acknowledged.append(number)
        assert unsure == 2
        assert "full on this member" in last  # the first one was on its way, the next is refused at once
        assert runtime.status().disk_full
        assert not reasons
        (small / "balloon").unlink()
        same = runtime.new_proposal_id()  # asked again until there is an answer, and run once
        async with asyncio.timeout(20):
            while True:
                try:
                    assert (await runtime.propose(blob(5000), timeout_s=2.0, proposal_id=same)).applied
                    break
                except UnavailableError:
                    continue
        found = {row["a"] for row in runtime.database.query("SELECT a FROM t")}
    assert set(acknowledged) <= found
    assert 5000 in found
    async with standalone(small / "database", limits=limits) as runtime:
        await runtime.read_barrier()
        assert {row["a"] for row in runtime.database.query("SELECT a FROM t")} == found


async def test_a_member_low_on_space_says_so_and_comes_back(small: Path) -> None:
    async with standalone(small / "database", limits=Limits(min_free_kib=4096)) as runtime:
        await applied(runtime, TABLE)
        await applied(runtime, blob(0))
        (small / "balloon").write_bytes(b"\0" * (9 << 20))
        await asyncio.sleep(1.2)
        with pytest.raises(UnavailableError, match="the disk of the database is full"):
            await runtime.propose(blob(1), timeout_s=1.0)
        assert await runtime.read_barrier() > 0
        assert (await runtime.propose(Transaction((Statement("DELETE FROM t WHERE a = 0"),)))).changed == (1,)
        first = Transaction((Statement("UPDATE t SET a = -1 WHERE a = 5"),), frees=True)
        assert (await runtime.propose(first)).applied
        (small / "balloon").unlink()
        await asyncio.sleep(1.2)
        assert (await runtime.propose(blob(1))).applied
        assert not (small / "database" / fmt.SUSPECT_NAME).exists()


def fill(place: Path) -> None:
    with (place / "balloon").open("ab", buffering=0) as balloon, contextlib.suppress(OSError):
        while True:
            balloon.write(b"\0" * 4096)


async def test_a_start_without_any_space_gives_up_the_ballast(small: Path) -> None:
    async with standalone(small / "database", limits=TINY) as runtime:
        await applied(runtime, TABLE)
    ballast = small / "database" / fmt.BALLAST_NAME
    assert not (small / "database" / (fmt.LOG_NAME + "-shm")).exists()  # a clean stop: opening needs new files
    ballast.write_bytes(b"\0" * (2 << 20))
    fill(small)
    async with standalone(small / "database", limits=TINY) as runtime:
        assert await runtime.read_barrier() > 0
        assert (await runtime.propose(blob(1))).applied
    assert not ballast.exists()


async def test_a_start_without_space_and_ballast_says_that_the_disk_is_full(small: Path) -> None:
    async with standalone(small / "database", limits=TINY) as runtime:
        await applied(runtime, TABLE)
    fill(small)
    with pytest.raises(LogFullError, match="is full"):
        open_member(small / "database")
    assert not (small / "database" / fmt.AMNESIA_NAME).exists()
    (small / "balloon").unlink()
    async with standalone(small / "database", limits=TINY) as runtime:
        assert await runtime.read_barrier() > 0
        assert (await runtime.propose(blob(1), timeout_s=5.0)).applied


async def test_ballast_is_laid_again_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "BALLAST_NEEDS_KIB", 0)
    monkeypatch.setattr(engine, "_BALLAST_EVERY_S", 0.05)
    ballast = tmp_path / "database" / fmt.BALLAST_NAME
    async with standalone(tmp_path / "database") as runtime:
        await until(ballast.exists)
        for _ in range(2):
            ballast.unlink()  # as the log thread does when the disk is full
            await until(ballast.exists)
        await applied(runtime, TABLE)
