"""Makes SQL give the same result on every replica, or fail on every replica.

Owns the functions and the authorizer of the apply connection (CONSENSUS 3.11, layers 1 and 2): time comes from the
entry's timestamp, chance from its chain, and every built-in that is not known to be deterministic raises. The
overrides reach column defaults, which no authorizer sees. Must never let a statement touch `_raft*`, `_sessions`,
`_features` or `sqlite_*`, and fails closed.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum
from hashlib import blake2b
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_BLOB: Final = 1 << 20

#: Deterministic built-ins. Left out on purpose: libm (last bits differ), versions, counters of the connection, and what
#: a member's SQLite may lack, because it is older (3.40 is the oldest that we run on) or was compiled without it: one
#: member would apply what another finds wrong.
ALLOWED: Final = frozenset(
    """-> ->> abs avg changes char coalesce count cume_dist dense_rank first_value format glob
    group_concat hex ifnull iif instr json json_array json_array_length json_each json_extract
    json_group_array json_group_object json_insert json_object json_patch json_quote json_remove json_replace json_set
    json_type json_valid lag last_insert_rowid last_value lead length like likelihood likely lower ltrim max min
    nth_value ntile nullif percent_rank printf quote rank replace round row_number rtrim sign
    substr substring subtype sum total trim typeof unicode unlikely upper zeroblob
    sqlite_drop_column sqlite_rename_column sqlite_rename_quotefix sqlite_rename_table sqlite_rename_test
    """.split()  # noqa: SIM905  # a list literal would be 80 lines
)
#: What came after SQLite 3.40: refused where it is proposed, too, whatever that member has.
TOO_NEW: Final = frozenset(
    """concat concat_ws if json_array_insert json_error_position json_pretty jsonb jsonb_array jsonb_array_insert
    jsonb_each jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove
    jsonb_replace jsonb_set jsonb_tree octet_length string_agg timediff unhex unistr unistr_quote
    """.split()  # noqa: SIM905  # as above
)
TIME_FUNCTIONS: Final = ("date", "time", "datetime", "julianday", "unixepoch", "strftime")
ZONES: Final = frozenset({"localtime", "utc"})  #: modifiers that ask for the time zone of the member
OVERRIDDEN: Final = frozenset(
    {*TIME_FUNCTIONS, "random", "randomblob", "current_date", "current_time", "current_timestamp"}
)
KNOWN: Final = ALLOWED | OVERRIDDEN

_SqlValue = None | int | float | str | bytes


class Mode(Enum):
    """Who is running SQL on the apply connection just now."""

    CORE = "core"  #: ourselves: everything is allowed
    GUARD = "guard"  #: may only read
    DATA = "data"  #: may change rows of application tables
    SCHEMA = "schema"  #: may change application tables themselves


_READS: Final = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE})
_WRITES: Final = frozenset({sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE})
_DDL: Final = frozenset(
    {
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_CREATE_VIEW,
        sqlite3.SQLITE_CREATE_TRIGGER,
        sqlite3.SQLITE_DROP_TABLE,
        sqlite3.SQLITE_DROP_INDEX,
        sqlite3.SQLITE_DROP_VIEW,
        sqlite3.SQLITE_DROP_TRIGGER,
        sqlite3.SQLITE_ALTER_TABLE,
        sqlite3.SQLITE_REINDEX,
    }
)
_CATALOGUE: Final = frozenset({"sqlite_master", "sqlite_schema", "sqlite_sequence"})


def _private(table: str | None) -> bool:
    name = (table or "").lower()
    return name.startswith(("_raft", "_sessions", "_features"))


class DeterminismGuard:
    """The overrides and the authorizer of one connection. Call `begin` before each entry."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.mode = Mode.CORE
        self._now = ""
        self._seed = b""
        self._drawn = 0
        # Python caches prepared statements by text and asks the authorizer only when it prepares one: without a
        # text of its own per mode, an entry could re-use what another mode was allowed to prepare.
        nonce = secrets.token_hex(8)
        self._prefix = {mode: f"/*{mode.value} {nonce}*/" for mode in Mode}
        self._clock = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._install(connection)
        connection.set_authorizer(self._authorize)

    def begin(self, timestamp_ms: int, seed: bytes) -> None:
        """Set what `now` and `random()` mean for the next entry."""
        moment = _EPOCH + timedelta(milliseconds=max(0, timestamp_ms))
        self._now = moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
        self._seed = seed
        self._drawn = 0

    def text(self, mode: Mode, sql: str) -> str:
        """Return the text under which `sql` may be prepared in this mode, and in no other."""
        return self._prefix[mode] + sql

    def close(self) -> None:
        """Release the private connection."""
        self._clock.close()

    def _install(self, connection: sqlite3.Connection) -> None:
        builtin = connection.execute("SELECT DISTINCT name, narg FROM pragma_function_list").fetchall()
        for name, arguments in builtin:
            if name not in KNOWN:
                connection.create_function(name, arguments, _refusing(name))
        for name in TIME_FUNCTIONS:
            connection.create_function(name, -1, self._time(name))
        connection.create_function("current_timestamp", 0, self._time("datetime"))
        connection.create_function("current_date", 0, self._time("date"))
        connection.create_function("current_time", 0, self._time("time"))
        connection.create_function("random", 0, lambda: int.from_bytes(self._draw(8), "big", signed=True))
        connection.create_function("randomblob", 1, self._random_blob)

    def _draw(self, size: int) -> bytes:
        drawn = b""
        while len(drawn) < size:
            self._drawn += 1
            drawn += blake2b(self._drawn.to_bytes(8, "big"), key=self._seed[:64], digest_size=64).digest()
        return drawn[:size]

    def _random_blob(self, size: _SqlValue) -> bytes:
        if not isinstance(size, int) or size > _MAX_BLOB:
            raise ValueError("randomblob() takes a number up to a million")
        return self._draw(max(1, size))

    def _time(self, name: str) -> Callable[..., _SqlValue]:
        position = 1 if name == "strftime" else 0

        def run(*arguments: _SqlValue) -> _SqlValue:
            values = list(arguments)
            if len(values) <= position:
                values += ["now"] * (position + 1 - len(values)) if len(values) == position else []
            for place, value in enumerate(values):
                if isinstance(value, bytes):
                    raise ValueError(f"{name}() takes no blobs")
                if place > position and str(value).strip().lower() in ZONES:
                    raise ValueError(f"{name}() knows no time zones here")
            if len(values) > position and str(values[position]).lower() == "now":
                values[position] = self._now
            marks = ",".join("?" * len(values))
            result: _SqlValue = self._clock.execute(f"SELECT {name}({marks})", values).fetchone()[0]
            return result

        return run

    def _authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, _inner: str | None
    ) -> int:
        if self.mode is Mode.CORE:
            return sqlite3.SQLITE_OK
        allowed = False
        if action in _READS:
            allowed = True
        elif action == sqlite3.SQLITE_READ:
            allowed = not _private(first)
        elif action == sqlite3.SQLITE_FUNCTION:
            allowed = (second or "").lower() in KNOWN
        elif self.mode is not Mode.GUARD and database in {"main", None}:
            allowed = self._may_write(action, first, second)
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    def _may_write(self, action: int, first: str | None, second: str | None) -> bool:
        """Whether a row change or DDL statement is for an application table."""
        catalogue = (first or "").lower().startswith("sqlite_")
        if action in _WRITES:
            in_schema = self.mode is Mode.SCHEMA and (first or "").lower() in _CATALOGUE
            return (not catalogue or in_schema) and not _private(first)
        if action in _DDL and self.mode is Mode.SCHEMA:
            return not _private(first) and not _private(second)
        return False


def _refusing(name: str) -> Callable[..., _SqlValue]:
    def refuse(*_arguments: _SqlValue) -> _SqlValue:
        raise ValueError(f"{name}() may differ from member to member")

    return refuse
