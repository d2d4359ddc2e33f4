"""`incus admin sql`: reads beside everything else, writes through the log or not at all, dumps that load again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from service_kit import running_services

from incus_actors.errors import ApiError, BadRequestError, MemberError
from incus_actors.services import sql as module
from incus_actors.services.sql_text import split_statements


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("", []),
        (" ; ;\n-- nothing\n; /* nor here */", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1; SELECT 2;", ["SELECT 1", "SELECT 2"]),
        ("SELECT 'a;b', \"c;d\"; SELECT 2 -- e;f", ["SELECT 'a;b', \"c;d\"", "SELECT 2 -- e;f"]),
        ("SELECT /* ; */ 1; ", ["SELECT /* ; */ 1"]),
        ("SELECT 'open; SELECT 2", ["SELECT 'open; SELECT 2"]),
    ],
)
def test_a_text_is_split_at_semicolons_that_end_something(text: str, statements: list[str]) -> None:
    assert split_statements(text) == statements


async def test_a_select_gives_columns_and_rows(tmp_path: Path) -> None:
    async with running_services(tmp_path) as kit:
        found = await kit.services.sql.run("global", "SELECT id, name FROM nodes; SELECT NULL AS n, 1.5, x'4142'")
        assert found == [
            {"type": "select", "columns": ["id", "name"], "rows": [[1, "none"]], "rows_affected": 0},
            {"type": "select", "columns": ["n", "1.5", "x'4142'"], "rows": [[None, 1.5, "AB"]], "rows_affected": 0},
        ]
        assert (await kit.services.sql.run("global", "WITH x AS (SELECT 7) SELECT * FROM x"))[0]["rows"] == [[7]]
        assert (await kit.services.sql.run("global", "PRAGMA table_info(config)"))[0]["rows"][1][1] == "key"
        assert await kit.services.sql.run("global", ".sync") is None


async def test_a_write_goes_through_the_log_and_everybody_is_told(tmp_path: Path) -> None:
    async with running_services(tmp_path) as kit:
        told: list[frozenset[str]] = []
        kit.consensus.subscribe_applied(lambda _i, topics: told.append(topics))
        before = kit.consensus.status().applied
        found = await kit.services.sql.run(
            "global",
            "INSERT INTO config (key, value) VALUES ('user.a', '1');"
            "SELECT value FROM config WHERE key = 'user.a'; UPDATE config SET value = 2",
        )
        assert found == [
            {"type": "exec", "columns": None, "rows": None, "rows_affected": 1},
            {"type": "select", "columns": ["value"], "rows": [["1"]], "rows_affected": 0},
            {"type": "exec", "columns": None, "rows": None, "rows_affected": 1},
        ]
        assert kit.consensus.status().applied > before or told
        assert any("config" in topics and "instances" in topics for topics in told)
        assert kit.services.config.value("user.a") == "2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SELECT nope FROM nodes", "Failed to execute query: no such column: nope"),
        ("UPDATE nope SET x = 1", "Failed to exec query: no such table: nope"),
        ("selec", 'Failed to exec query: near "selec": syntax error'),
        ("SELECT 'open", "Failed to execute query: unrecognized token"),
        ("CREATE TABLE t (x)", "Failed to exec query: Statement refused"),
        ("DROP TABLE nodes", "Failed to exec query: Statement refused"),
        ("ATTACH '/tmp/e2b-attached.db' AS x", "Failed to exec query: Statement refused"),
        ("PRAGMA journal_mode=DELETE", "Failed to exec query: Statement refused"),
        ("VACUUM", "Failed to exec query: Statement refused"),
        ("BEGIN; DELETE FROM nodes; COMMIT", "Failed to exec query"),
        ("UPDATE _raft SET applied_index = 0", "Failed to exec query: not authorized"),
        ("DELETE FROM config; INSERT INTO nodes (id) VALUES (1)", "Failed to exec query: "),
        ("INSERT INTO config (key, value) SELECT name, name FROM nodes", "needs ORDER BY"),
        ("UPDATE config SET value = sqlite_version()", "Failed to exec query: "),
        ("UPDATE config SET value = datetime('now', 'localtime')", "datetime() knows no time zones"),
        ("SELECT load_extension('/tmp/x')", "Failed to execute query: "),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n",
            "Failed to exec query: interrupted",
        ),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) SELECT i FROM n", "more than"),
    ],
)
async def test_what_can_not_be_is_refused_and_nothing_changes(
    tmp_path: Path, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_S", 0.2)
    monkeypatch.setattr(module, "MAX_ROWS", 1000)
    async with running_services(tmp_path) as kit:
        await kit.services.sql.run("global", "INSERT INTO config (key, value) VALUES ('user.a', '1')")
        with pytest.raises(MemberError) as failure:
            await kit.services.sql.run("global", text)
        assert words in str(failure.value)
        assert failure.value.status == 500
        assert not Path("/tmp/e2b-attached.db").exists()
        assert kit.database.scalar("SELECT value FROM config") == "1"
        assert kit.database.scalar("SELECT COUNT(*) FROM nodes") == 1
        refused = kit.consensus.status().counters.get("proposals_refused,status=nondeterministic", 0)
        assert refused == ("Statement refused" in str(failure.value))


async def test_bad_requests(tmp_path: Path) -> None:
    async with running_services(tmp_path) as kit:
        for text in ("", ";", " -- nothing"):
            with pytest.raises(BadRequestError, match="No query provided"):
                await kit.services.sql.run("global", text)
        for name in ("", "other"):
            with pytest.raises(BadRequestError, match="Invalid database"):
                await kit.services.sql.run(name, "SELECT 1")
            with pytest.raises(BadRequestError, match="Invalid database"):
                await kit.services.sql.text(name, schema=True)
        with pytest.raises(ApiError, match="only shows"):
            await kit.services.sql.run("local", "DELETE FROM config")
        with pytest.raises(BadRequestError, match="statements at once"):
            split_statements("SELECT 1;" * 1001)


async def test_the_local_database_shows_what_is_this_members(tmp_path: Path) -> None:
    async with running_services(tmp_path) as kit:
        run = kit.services.sql.run
        assert (await run("local", "SELECT * FROM raft_nodes"))[0]["rows"] == []
        await kit.sql(
            "INSERT INTO node_server_config (node_id, key, value) VALUES (1, 'core.https_address', '10.0.0.1:8443')"
        )
        await kit.become_clustered()
        (nodes,) = await run("local", "SELECT * FROM raft_nodes")
        assert nodes["columns"] == ["id", "address", "role", "name"]
        assert nodes["rows"] == [[1, "127.0.0.1:8443", 0, "node1"]]
        (config,) = await run("local", "SELECT * FROM config")
        assert config["rows"] == [[1, "core.https_address", "10.0.0.1:8443"]]
        text = await kit.services.sql.text("local", schema=False)
        assert "INSERT INTO \"raft_nodes\" VALUES(1,'127.0.0.1:8443',0,'node1');" in text


async def test_a_dump_makes_the_same_database_again(tmp_path: Path) -> None:
    async with running_services(tmp_path) as kit:
        await kit.services.sql.run("global", "INSERT INTO config (key, value) VALUES ('user.a', 'it''s\n--;')")
        text = await kit.services.sql.text("global", schema=False)
        assert text.startswith("PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n")
        assert text.endswith("COMMIT;\n")
        again = sqlite3.connect(":memory:")
        again.executescript(text)
        tables = [r[0] for r in kit.database.query("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        for table in tables:
            if table.startswith(("_", "sqlite_")):
                continue
            rows = f'SELECT * FROM "{table}" ORDER BY 1'
            assert again.execute(rows).fetchall() == [tuple(row) for row in kit.database.query(rows)]
        schema = await kit.services.sql.text("global", schema=True)
        assert "INSERT INTO" not in schema
        assert "CREATE UNIQUE INDEX" in schema
        assert "_raft" not in schema
