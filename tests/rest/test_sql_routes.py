"""/internal/sql as `incus admin sql` uses it."""

from __future__ import annotations

from pathlib import Path

from plain_rest_kit import running_rest


async def test_statements_and_dumps(tmp_path: Path) -> None:
    async with running_rest(tmp_path) as rest:
        ask = {"database": "global", "query": "SELECT id, name FROM nodes"}
        answer = await rest.ask("POST", "/internal/sql", ask)
        assert answer.metadata == {
            "Results": [{"type": "select", "columns": ["id", "name"], "rows": [[1, "none"]], "rows_affected": 0}]
        }
        answer = await rest.ask("POST", "/internal/sql", {"database": "global", "query": ".sync"})
        assert answer.metadata == {"Results": None}
        answer = await rest.ask("POST", "/internal/sql", {"database": "global", "query": "SELECT nope FROM nodes"})
        assert (answer.status, answer.error) == (500, "Failed to execute query: no such column: nope")
        answer = await rest.ask("POST", "/internal/sql", {"database": "x", "query": "SELECT 1"})
        assert (answer.status, answer.error) == (400, "Invalid database")
        answer = await rest.ask("GET", "/internal/sql?database=global&schema=1")
        assert list(answer.metadata) == ["text"]
        assert "CREATE TABLE" in answer.metadata["text"]
        assert "INSERT INTO" in (await rest.ask("GET", "/internal/sql?database=global")).metadata["text"]


async def test_only_the_unix_socket_may(tmp_path: Path) -> None:
    async with running_rest(tmp_path) as rest, rest.tls() as stranger:
        for method, path in (("POST", "/internal/sql"), ("GET", "/internal/sql?database=global")):
            answer = await rest.ask(method, path, {"database": "global", "query": "SELECT 1"}, session=stranger)
            assert answer.status == 403
