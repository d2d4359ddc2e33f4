"""Which answers are forgotten."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from incus_actors.consensus.proposal_ids import ProposalIds, made_at_ms
from incus_actors.consensus.sessions import expiry_cutoff
from incus_actors.state.apply import Applier
from incus_actors.state.database import Database

NOW = 1_700_000_000_000


def remembered(tmp_path: Path, *ages_ms: int) -> Database:
    path = tmp_path / "global-1.db"
    Applier(path).close()
    ids = ProposalIds()
    with sqlite3.connect(path) as connection:
        for index, age_ms in enumerate(ages_ms):
            connection.execute("INSERT INTO _sessions VALUES (?, ?, 0, x'00')", (ids.new(NOW - age_ms), index))
    return Database(path)


def test_ids_carry_their_time_and_never_repeat() -> None:
    ids, others = ProposalIds(), ProposalIds()
    made = {maker.new(NOW) for maker in (ids, others) for _ in range(1000)}
    assert len(made) == 2000
    assert {len(one) for one in made} == {16}
    assert {made_at_ms(one) for one in made} == {NOW}


def test_nothing_is_due(tmp_path: Path) -> None:
    assert expiry_cutoff(remembered(tmp_path), now_ms=NOW, applied=0, settled=0) is None
    assert expiry_cutoff(remembered(tmp_path, 500, 100), now_ms=NOW, applied=5, settled=5, life_ms=1000) is None


def test_age_counts(tmp_path: Path) -> None:
    database = remembered(tmp_path, 5000, 100)
    assert expiry_cutoff(database, now_ms=NOW, applied=5, settled=5, life_ms=1000) == NOW - 1000


def test_too_many_lose_the_oldest(tmp_path: Path) -> None:
    database = remembered(tmp_path, 50, 40, 30, 20, 10)
    assert expiry_cutoff(database, now_ms=NOW, applied=5, settled=5, limit=2) == NOW - 30
    assert expiry_cutoff(database, now_ms=NOW, applied=5, settled=5, limit=5) is None


def test_never_more_than_a_portion_at_once(tmp_path: Path) -> None:
    database = remembered(tmp_path, 50, 40, 30, 20, 10)
    assert expiry_cutoff(database, now_ms=NOW, applied=5, settled=5, life_ms=0, portion=2) == NOW - 40


def test_what_has_not_settled_is_not_due_however_old_its_id_says_it_is(tmp_path: Path) -> None:
    """A member whose clock is at 1970 has just written; the ids of others are from today."""
    database = remembered(tmp_path, 900, 800, NOW)
    assert expiry_cutoff(database, now_ms=NOW, applied=2, settled=1, life_ms=1000) is None
    assert expiry_cutoff(database, now_ms=NOW, applied=2, settled=2, life_ms=1000) == NOW - 1000
    assert expiry_cutoff(database, now_ms=NOW, applied=300, settled=1, limit=1) == NOW - 800
    assert expiry_cutoff(database, now_ms=NOW, applied=300, settled=0, limit=1) is None
