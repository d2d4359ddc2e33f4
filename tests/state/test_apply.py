"""Applying: guards, fences, once only, the same everywhere, and refusal of what could differ."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from incus_actors.model.features import encode_level
from incus_actors.model.transaction import Guard, Outcome, Statement, Transaction, Value
from incus_actors.state.apply import TOO_OLD, Applier, Batch
from incus_actors.state.codec import encode_expire, encode_transaction
from incus_actors.state.database import Database
from incus_actors.state.determinism import DeterminismGuard, Mode
from incus_actors.state.position import ApplyError, FeatureTooNewError, UnknownEntryKindError, read_level

SQL, SCHEMA, EXPIRE, FEATURE, CHECK = 2, 3, 4, 5, 6
START_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Record:
    index: int
    term: int
    kind: int
    timestamp_ms: int
    proposal_id: bytes
    body: bytes
    chain: bytes


def proposal(number: int, made_ms: int = START_MS) -> bytes:
    return made_ms.to_bytes(6, "big") + number.to_bytes(10, "big")


class Replica:
    """A state file and the log that it is built from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.applier = Applier(path)
        self.log: list[Record] = []

    def record(self, body: bytes, kind: int, *, term: int = 1, pid: bytes | None = None) -> Record:
        index = self.applier.position.index + 1
        pid = proposal(index) if pid is None else pid
        return Record(index, term, kind, START_MS + index, pid, body, index.to_bytes(8, "little"))

    def apply(self, *records: Record) -> Batch:
        self.log += records
        return self.applier.apply(records)

    def run(self, transaction: Transaction, *, term: int = 1, pid: bytes | None = None) -> Outcome:
        kind = SCHEMA if transaction.schema else SQL
        batch = self.apply(self.record(encode_transaction(transaction), kind, term=term, pid=pid))
        return batch.results[0][1]

    def sql(self, sql: str, *parameters: Value) -> Outcome:
        return self.run(Transaction((Statement(sql, parameters),)))

    def ddl(self, *sql: str) -> Outcome:
        return self.run(Transaction(tuple(Statement(s) for s in sql), schema=True))

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        with sqlite3.connect(self.path) as connection:
            return connection.execute(sql).fetchall()


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    made = Replica(tmp_path / "global-1.db")
    assert made.ddl(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a ANY UNIQUE, at TEXT DEFAULT CURRENT_TIMESTAMP,"
        " r INTEGER DEFAULT (random()), b BLOB DEFAULT (randomblob(4))) STRICT"
    ).applied
    return made


def test_rows_and_counts_come_back(replica: Replica) -> None:
    outcome = replica.run(
        Transaction(
            (
                Statement("INSERT INTO t (a) VALUES (1), (2) RETURNING id, a"),
                Statement("UPDATE t SET a = a + ?", (10,)),
                Statement("SELECT a FROM t ORDER BY a"),
                Statement("DELETE FROM t WHERE a = 11"),
            )
        )
    )
    assert outcome.changed == (2, 2, 0, 1)
    assert outcome.rows == (((1, 1), (2, 2)), (), ((11,), (12,)), ())


def test_every_value_survives(replica: Replica) -> None:
    values: tuple[Value, ...] = (None, -(2**63), 2**63 - 1, 1.5, "ü\n", b"\0\xff", "")
    for value in values:
        assert replica.sql("SELECT ?", value).rows == (((value,),),)


def test_a_failing_guard_changes_nothing_and_names_itself(replica: Replica) -> None:
    replica.sql("INSERT INTO t (a) VALUES (1)")
    insert = Statement("INSERT INTO t (a) VALUES (2)")
    count = "SELECT COUNT(*) FROM t"
    good, bad = Guard(count, (), ((1,),), "one"), Guard(count, (), ((0,),), "none")
    refused = replica.run(Transaction((insert,), guards=(good, bad)))
    assert (refused.status, refused.label, refused.rows) == ("conflict", "none", ())
    assert replica.run(Transaction((insert,), guards=(good,))).applied


def test_a_failing_statement_takes_the_whole_transaction_back(replica: Replica) -> None:
    replica.sql("INSERT INTO t (a) VALUES (1)")
    both = Transaction((Statement("INSERT INTO t (a) VALUES (2)"), Statement("INSERT INTO t (a) VALUES (1)")))
    outcome = replica.run(both)
    assert (outcome.status, outcome.error) == ("error", "UNIQUE constraint failed: t.a")
    assert replica.rows("SELECT a FROM t") == [(1,)]


def test_a_deposed_leader_is_fenced(replica: Replica) -> None:
    fenced = Transaction((Statement("INSERT INTO t (a) VALUES (1)"),), fence_term=3)
    outcome = replica.run(fenced, term=4)
    assert (outcome.status, outcome.label) == ("conflict", "fence")
    assert replica.run(fenced, term=3).applied


def test_a_proposal_runs_once_also_after_a_restart(replica: Replica) -> None:
    insert = Transaction((Statement("INSERT INTO t (a) VALUES (1) RETURNING id"),))
    first = replica.run(insert, pid=proposal(77))
    assert replica.run(insert, pid=proposal(77)) == first
    replica.applier.close()
    replica.applier = Applier(replica.path)
    assert replica.run(insert, pid=proposal(77)) == first
    assert replica.rows("SELECT COUNT(*) FROM t") == [(1,)]


def test_a_check_brings_out_in_the_digest_what_changed_at_rest(replica: Replica, tmp_path: Path) -> None:
    replica.sql("INSERT INTO t (a) VALUES (1)")
    shutil.copy(replica.path, tmp_path / "other.db")
    shutil.copy(f"{replica.path}-wal", tmp_path / "other.db-wal")
    other = Replica(tmp_path / "other.db")
    with sqlite3.connect(other.path) as connection:
        connection.execute("UPDATE t SET a = 2")
    assert other.applier.position == replica.applier.position  # the running digest has seen nothing

    insert = replica.record(encode_transaction(Transaction((Statement("SELECT 1"),))), SQL)
    assert replica.apply(insert).position.digest == other.apply(insert).position.digest
    check = replica.record(b"", CHECK)
    batch = replica.apply(check)
    assert batch.position.digest != other.apply(check).position.digest
    assert batch.counters == {"state_checks": 1}
    assert len(batch.results[0][1].rows[0][0][0]) == 16


def test_a_check_is_the_same_on_equal_replicas(replica: Replica, tmp_path: Path) -> None:
    twin = Replica(tmp_path / "twin.db")
    twin.apply(*replica.log)
    check = replica.record(b"", CHECK)
    assert replica.apply(check).position == twin.apply(check).position


def test_expiry_forgets_old_answers_and_refuses_their_retries(replica: Replica) -> None:
    insert = Transaction((Statement("INSERT INTO t (a) VALUES (1)"),))
    replica.run(insert, pid=proposal(1, START_MS - 5000))
    keep = replica.run(Transaction((Statement("SELECT 1"),)), pid=proposal(2, START_MS - 10))
    batch = replica.apply(replica.record(encode_expire(START_MS - 1000, replica.applier.position.index), EXPIRE))
    assert batch.results[0][1].changed == (1,)
    late = replica.run(insert, pid=proposal(1, START_MS - 5000))
    assert late.status == "error"
    assert replica.run(Transaction((Statement("SELECT 1"),)), pid=proposal(2, START_MS - 10)) == keep


def test_expiry_keeps_the_answers_of_those_whose_clock_is_wrong_while_they_may_ask_again(replica: Replica) -> None:
    """Without that the maker hears that its proposal is too old, believes that it did not run, and makes a new one."""
    old = Transaction((Statement("INSERT INTO t (a) VALUES (1)"),))
    settled = replica.run(old, pid=proposal(1, START_MS - 5000)).index
    again = Transaction((Statement("INSERT INTO t (a) VALUES (2)"),))
    young = replica.run(again, pid=proposal(2, 17))  # the clock of its maker is at 1970
    batch = replica.apply(replica.record(encode_expire(START_MS - 1000, settled), EXPIRE))
    assert batch.results[0][1].changed == (1,)
    assert replica.run(again, pid=proposal(2, 17)) == young
    assert replica.run(again, pid=proposal(3, 18)).error == TOO_OLD  # never ran: to refuse it is true


def test_expiry_never_reaches_past_its_own_time(replica: Replica) -> None:
    replica.apply(replica.record(encode_expire(2**47, 0), EXPIRE, pid=b""))
    assert replica.applier.position.horizon_ms <= START_MS + 10
    assert replica.run(Transaction((Statement("SELECT 1"),)), pid=proposal(9, START_MS + 5000)).applied


def test_two_replicas_are_equal_however_entries_are_batched_and_restarts_fall(tmp_path: Path, replica: Replica) -> None:
    for number in range(20):
        replica.sql("INSERT INTO t (a) VALUES (?)", number % 15)
        replica.sql("INSERT INTO t (a) VALUES (last_insert_rowid() + 100)")
        replica.sql("UPDATE t SET r = random(), at = datetime('now', '+1 day') WHERE id = changes() + 1")
    other = Replica(tmp_path / "other.db")
    other.applier.apply(replica.log[:7])
    other.applier.close()
    other.applier = Applier(other.path)
    other.applier.apply(replica.log[7:])
    assert other.applier.position == replica.applier.position
    everything = "SELECT * FROM t ORDER BY id"
    assert other.rows(everything) == replica.rows(everything)
    assert len(replica.rows(everything)) == 16


def test_time_and_chance_come_from_the_entry_also_in_column_defaults(replica: Replica) -> None:
    replica.sql("INSERT INTO t (a) VALUES (1), (2)")
    (one, two) = replica.rows("SELECT at, r, b FROM t")
    assert one[0] == two[0] == "2023-11-14 22:13:20"
    assert one[1] != two[1]
    assert one[2] != two[2]
    now = replica.sql("SELECT date(), time('NOW'), unixepoch('now'), strftime('%Y'), julianday(), current_date").rows
    assert now[0][0] == ("2023-11-14", "22:13:20", 1_700_000_000, "2023", pytest.approx(2460263.4259), "2023-11-14")
    assert replica.sql("SELECT date('2020-02-03', '+1 day'), strftime('%d', 0)").rows[0][0] == ("2020-02-04", "24")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT total_changes()",
        "SELECT sqlite_version()",
        "SELECT sin(1)",
        "SELECT load_extension('x')",
        "SELECT datetime('now', 'localtime')",
        "SELECT datetime('now', ' UTC ')",
        "SELECT randomblob(100000000)",
        "PRAGMA foreign_keys = OFF",
        "ATTACH 'x' AS y",
        "DELETE FROM _raft",
        "UPDATE _sessions SET idx = 1",
        "SELECT digest FROM _raft",
        "INSERT INTO sqlite_sequence VALUES ('t', 1)",
        "DELETE FROM sqlite_master",
        "DROP TABLE t",
        "CREATE TABLE u (id INTEGER PRIMARY KEY)",
        "CREATE TEMP TABLE u (id INTEGER PRIMARY KEY)",
        "ANALYZE",
        "VACUUM",
        "COMMIT",
        "SAVEPOINT mine",
        "ROLLBACK TO entry",
        "SELECT 1; SELECT 2",
        "SELECT ?",
        "no sql at all",
    ],
)
def test_what_could_differ_or_break_out_fails_the_same_everywhere(replica: Replica, sql: str) -> None:
    outcome = replica.sql(sql)
    assert outcome.status == "error", outcome
    assert replica.sql("INSERT INTO t (a) VALUES (1)").applied


def test_a_statement_can_not_borrow_what_another_mode_prepared(replica: Replica) -> None:
    """Prepared statements are cached by text, and asked about only when they are prepared."""
    index = "CREATE INDEX i ON t (a)"
    assert replica.ddl(index, "DROP INDEX i").applied
    assert replica.sql(index).status == "error"
    delete = "DELETE FROM t"
    replica.sql("INSERT INTO t (a) VALUES (1)")
    assert replica.sql(delete).applied
    replica.sql("INSERT INTO t (a) VALUES (1)")
    guarded = replica.run(Transaction((Statement("SELECT 1"),), guards=(Guard(delete, (), (), "x"),)))
    assert guarded.status == "error"
    assert replica.rows("SELECT COUNT(*) FROM t") == [(1,)]


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("CREATE TABLE u (a TEXT) STRICT", "neither an INTEGER PRIMARY KEY nor WITHOUT ROWID"),
        ("CREATE TABLE u (a TEXT PRIMARY KEY) STRICT", "neither an INTEGER PRIMARY KEY nor WITHOUT ROWID"),
        ("CREATE TABLE u (a TEXT PRIMARY KEY, without TEXT) STRICT", "neither an INTEGER PRIMARY KEY nor WITHOUT"),
        ("CREATE TABLE u (id INTEGER PRIMARY KEY DESC) STRICT", "neither an INTEGER PRIMARY KEY nor WITHOUT ROWID"),
        ("CREATE TABLE u (id INTEGER, b INTEGER, PRIMARY KEY (id, b)) STRICT", "neither an INTEGER PRIMARY KEY nor"),
        ("CREATE TABLE u (id INTEGER PRIMARY KEY)", "u is not STRICT"),
        ("CREATE TABLE u (id INTEGER PRIMARY KEY AUTOINCREMENT) STRICT", "u has AUTOINCREMENT"),
        ("CREATE TABLE u (id INTEGER PRIMARY KEY, v TEXT DEFAULT (sqlite_version())) STRICT", "calls sqlite_version"),
        ('CREATE TABLE u (id INTEGER PRIMARY KEY, v TEXT DEFAULT ("hex" (1) || [sin] (1))) STRICT', "calls sin"),
        ("ALTER TABLE t ADD COLUMN v TEXT DEFAULT (sqlite_version())", "column t.v has a default that calls"),
        (
            "CREATE TABLE u (id INTEGER PRIMARY KEY, t INTEGER REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED) STRICT",
            "deferred constraint",
        ),
    ],
)
def test_tables_that_could_differ_are_refused(replica: Replica, sql: str, why: str) -> None:
    outcome = replica.ddl(sql)
    assert outcome.status == "error"
    assert why in outcome.error
    assert replica.rows("SELECT name FROM sqlite_master WHERE name = 'u'") == []
    assert replica.rows("SELECT name FROM pragma_table_info('t') WHERE name = 'v'") == []
    assert replica.ddl("CREATE TABLE u (k TEXT PRIMARY KEY) STRICT, WITHOUT ROWID").applied


def test_a_table_may_be_made_and_changed(replica: Replica) -> None:
    assert replica.ddl(
        "CREATE TABLE u (k INTEGER, j TEXT, \"autoincrement\" TEXT DEFAULT (upper('x')), PRIMARY KEY (k)) STRICT",
        "CREATE VIEW v AS SELECT k FROM u",
        "ALTER TABLE t ADD COLUMN more TEXT NOT NULL DEFAULT 'sqlite_version()'",
        "DROP TABLE u",
    ).applied


@pytest.mark.parametrize("name", ["octet_length", "string_agg", "unhex", "soundex", "ceil"])
def test_functions_that_some_sqlite_lacks_fail_everywhere(name: str) -> None:
    """They are unknown to the one and must be refused by the other, which we make here if it is not the one."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.create_function(name, 1, lambda value: value, deterministic=True)
        assert connection.execute(f"SELECT {name}('61')").fetchone() == ("61",)
        guard = DeterminismGuard(connection)
        with pytest.raises(sqlite3.OperationalError, match="user-defined function raised exception"):
            connection.execute(guard.text(Mode.CORE, f"SELECT {name}('61')")).fetchone()
        guard.mode = Mode.DATA
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            connection.execute(guard.text(Mode.DATA, f"SELECT {name}('61')"))
        guard.close()


def test_foreign_keys_are_enforced_and_cascade(replica: Replica) -> None:
    replica.ddl("CREATE TABLE c (id INTEGER PRIMARY KEY, t INTEGER REFERENCES t (id) ON DELETE CASCADE) STRICT")
    assert replica.sql("INSERT INTO c (t) VALUES (9)").error == "FOREIGN KEY constraint failed"
    replica.sql("INSERT INTO t (id, a) VALUES (1, 1)")
    replica.sql("INSERT INTO c (t) VALUES (1)")
    assert replica.sql("DELETE FROM t WHERE id = 1").changed == (1,)
    assert replica.rows("SELECT COUNT(*) FROM c") == [(0,)]


def test_garbage_in_the_log_is_an_outcome_and_unknown_kinds_stop(replica: Replica) -> None:
    batch = replica.apply(replica.record(b"\xc1 garbage", SQL))
    assert batch.results[0][1].status == "error"
    before = replica.applier.position
    with pytest.raises(UnknownEntryKindError):
        replica.apply(replica.record(b"", 9))
    with pytest.raises(ApplyError):
        replica.applier.apply([replica.record(b"", 0), replica.record(b"", 0)])
    assert replica.applier.position == before
    replica.applier.close()
    assert Applier(replica.path).position == before


def test_a_feature_level_is_switched_on_for_good(replica: Replica) -> None:
    replica.applier.supported = 3
    assert replica.applier.level == 0
    batch = replica.apply(replica.record(encode_level(2), FEATURE))
    assert (batch.level, batch.results[0][1].status) == (2, "applied")
    again = replica.record(encode_level(1), FEATURE)  # of a leader that did not know: nothing goes back
    assert replica.apply(again).results[0][1].applied
    assert replica.apply(replica.record(encode_level(3)[:2], FEATURE)).results[0][1].status == "error"
    assert replica.applier.level == 2
    assert replica.sql("SELECT level FROM _features").status == "error"  # no entry's business
    replica.applier.close()
    assert Applier(replica.path, supported=2).level == 2


def test_an_older_release_stops_at_a_level_that_it_does_not_know(replica: Replica) -> None:
    replica.applier.supported = 1
    before = replica.applier.position
    known, unknown = replica.record(b"\xc1", SQL), replica.record(encode_level(2), FEATURE)
    with pytest.raises(FeatureTooNewError, match=r"uses feature level 2, this release knows 1: upgrade incus_actors"):
        replica.applier.apply([known, replace(unknown, index=known.index + 1, proposal_id=proposal(99))])
    assert replica.applier.position == before
    replica.applier.supported = 2
    replica.apply(unknown)
    replica.applier.close()
    with pytest.raises(FeatureTooNewError):  # nor does it open what is there
        Applier(replica.path, supported=1)


def test_before_the_first_level_nothing_shows_which_release_opened_a_state(replica: Replica, tmp_path: Path) -> None:
    """A whole hash covers every table: one that only newer members make would take them out, or the older ones."""
    twin = Replica(tmp_path / "twin.db")
    twin.applier.close()
    with closing(sqlite3.connect(twin.path)) as connection:
        assert read_level(connection) == 0
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_features'").fetchall()


def test_an_entry_for_newer_tables_is_a_conflict_on_older_ones(replica: Replica) -> None:
    wants = Transaction((Statement("INSERT INTO t (a) VALUES (1)"),), min_schema=2)
    version = "INSERT INTO schema (id, version) VALUES (?, ?)"
    assert replica.run(wants).label == "schema"
    assert replica.ddl("CREATE TABLE schema (id INTEGER PRIMARY KEY, version INTEGER NOT NULL) STRICT").applied
    replica.run(Transaction((Statement(version, (1, 1)),), schema=True))
    outcome = replica.run(wants)
    assert (outcome.status, outcome.label) == ("conflict", "schema")
    assert replica.rows("SELECT COUNT(*) FROM t") == [(0,)]
    replica.run(Transaction((Statement(version, (2, 2)),), schema=True))
    assert replica.run(wants).applied


def test_trouble_of_this_machine_is_no_outcome(replica: Replica) -> None:
    replica.applier._connection.execute("PRAGMA max_page_count=1")
    before = replica.applier.position
    record = replica.record(
        encode_transaction(Transaction((Statement("INSERT INTO t (b) VALUES (zeroblob(99999))"),))), SQL
    )
    with pytest.raises(sqlite3.OperationalError, match="full"):
        replica.apply(record)
    assert replica.applier.position == before
    replica.applier._connection.execute("PRAGMA max_page_count=100000")
    assert replica.apply(record).results[0][1].applied


def test_only_what_took_effect_is_told(replica: Replica) -> None:
    ok = Transaction((Statement("INSERT INTO t (a) VALUES (1)"),), topics=("a",))
    clash = Transaction((Statement("INSERT INTO t (a) VALUES (1)"),), topics=("b",))
    first = replica.record(encode_transaction(ok), SQL)
    second = Record(first.index + 1, 1, SQL, START_MS, proposal(99), encode_transaction(clash), b"x" * 8)
    batch = replica.apply(first, second)
    assert batch.topics == {"a"}
    assert batch.counters == {"apply_errors": 1}


def test_a_checkpoint_says_what_is_durable_even_under_a_reader(replica: Replica) -> None:
    replica.sql("INSERT INTO t (a) VALUES (1)")
    database = Database(replica.path)
    with database.snapshot() as moment:
        replica.sql("INSERT INTO t (a) VALUES (2)")
        assert replica.applier.checkpoint() == replica.applier.position.index
        assert moment.scalar("SELECT COUNT(*) FROM t") == 1
        assert database.scalar("SELECT COUNT(*) FROM t") == 2
    database.close()


def test_the_version_of_the_tables_is_no_memory_of_one_process(replica: Replica, tmp_path: Path) -> None:
    """`admin sql` may write the table `schema` like any other: who has just started must see what all others see."""
    version = "INSERT INTO schema (id, version) VALUES (?, ?)"
    assert replica.ddl("CREATE TABLE schema (id INTEGER PRIMARY KEY, version INTEGER NOT NULL) STRICT").applied
    replica.run(Transaction((Statement(version, (2, 2)),), schema=True))
    wants = Transaction((Statement("INSERT INTO t (a) VALUES (NULL)"),), min_schema=2)
    assert replica.run(wants).applied
    assert replica.sql("UPDATE schema SET version = 1").applied
    replica.applier.checkpoint()
    twin = Replica(tmp_path / "global-2.db")
    twin.applier.close()
    shutil.copy(replica.path, twin.path)
    twin.applier = Applier(twin.path)
    entry = replica.record(encode_transaction(wants), SQL)
    assert replica.apply(entry).results == twin.apply(entry).results
    assert replica.applier.position.digest == twin.applier.position.digest
