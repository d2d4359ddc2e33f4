"""What `incus-actors raft status` prints."""

from __future__ import annotations

import io
from typing import Any

import pytest
from click.testing import CliRunner
from rich import box
from rich.console import Console
from rich.table import Table

from incus_actors.cli.inspect import _features, _members_table, _sqlite, print_whole, raft


def test_a_wide_table_is_not_squeezed_on_a_narrow_terminal() -> None:
    table = Table("ID", "ADDRESS", "STATE", "LAST CONTACT", box=box.ASCII)
    table.add_row("1 *", "10.111.222.133:12345", "replicate", "1234 ms")
    out = io.StringIO()
    print_whole(Console(file=out, width=30), table)
    head, row = (line for line in out.getvalue().splitlines() if line.startswith("|") and not line.startswith("|-"))
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["ID", "ADDRESS", "STATE", "LAST CONTACT"]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["1 *", "10.111.222.133:12345", "replicate", "1234 ms"]


def test_a_follower_does_not_invent_where_the_others_are() -> None:
    facts = {
        "member_id": 2,
        "last": 743,
        "free_kib": -1,
        "peers": [
            {"id": 1, "match": 0, "state": "unknown", "last_contact_ms": -1, "round_trip_ms": 0.0, "link": True},
            {
                "id": 3,
                "match": 740,
                "lag": 3,
                "state": "replicate",
                "last_contact_ms": 4,
                "round_trip_ms": 1.2,
                "link": False,
                "in_flight": 2,
                "free_kib": 3 << 20,
            },
        ],
        "configuration": {
            "new": [],
            "old": [{"id": i, "role": "voter", "address": f"10.0.0.{i}:1", "domain": "default"} for i in (1, 2, 3)],
        },
    }
    out = io.StringIO()
    print_whole(Console(file=out), _members_table(facts, {"1": "m1", "2": "m2"}))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.getvalue().splitlines()[3:-1]]
    assert rows == [
        ["1", "m1", "voter", "10.0.0.1:1", "default", "", "", "", "", "", "up", "", ""],
        ["2 *", "m2", "voter", "10.0.0.2:1", "default", "743", "", "", "", "", "", "", "unknown"],
        ["3", "", "voter", "10.0.0.3:1", "default", "740", "3", "replicate", "4 ms", "1.2 ms", "down", "2", "3.0 GiB"],
    ]


def test_who_has_another_sqlite_is_named() -> None:
    peers = [
        {"id": 3, "sqlite_version": "3.46.0"},
        {"id": 2, "sqlite_version": "3.40.1"},
        {"id": 4, "sqlite_version": ""},
    ]
    facts = {"sqlite_version": "3.40.1", "peers": peers}
    assert _sqlite(facts) == "sqlite 3.40.1; member 3 has 3.46.0"
    assert _sqlite({**facts, "peers": peers[1:]}) == "sqlite 3.40.1"


def test_for_whom_what_is_newer_waits() -> None:
    peers = [{"id": 3, "features": 1}, {"id": 4, "features": -1}]
    facts = {"member_id": 2, "feature_level": 1, "features": 2, "peers": peers}
    assert _features(facts) == "feature level 1, 2 waits (member 3 knows 1; member 4 has not said its own)"
    assert _features({**facts, "peers": []}) == "feature level 1, 2 waits (it will be switched on)"
    assert _features({**facts, "feature_level": 2}) == "feature level 2"
    assert _features({"member_id": 2, "peers": [{"id": 3}]}) == "no feature levels (an older release)"


def test_on_a_follower_it_says_whom_to_ask_and_whom_names_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    key = "ab" * 32
    members = [{"id": i, "role": "voter", "address": f"10.0.0.{i}:7:8:{key}", "domain": "default"} for i in (1, 2)]
    facts = {
        "member_id": 2, "role": "follower", "term": 4, "leader": 1, "cluster_id": "c", "epoch": 1, "first": 1, "last": 9,
        "durable": 9, "commit": 9, "applied": 9, "loop_late_ms": 0.0, "free_kib": 25 << 10, "fast_path_spent": 0,
        "fast_path_budget": 4, "sqlite_version": "3.40.1", "peers": [], "configuration": {"new": None, "old": members},
        "latency_ms": {"election": {}}, "queue_depths": {}, "counters": {}, "halted": "of epoch [1]", "refused_by": [1, 7],
        "disk_full": True, "feature_level": 1, "features": 2,
    }  # fmt: skip

    def fetch(path: str) -> dict[str, Any]:
        asked.append(path)
        return {"status": facts, "transport": {}, "journal": [], "names": {"1": "m1", "2": "m 2"}}

    monkeypatch.setattr("incus_actors.cli.inspect.fetch", fetch)
    shown = CliRunner().invoke(raft, ["status"]).output
    assert "How far each member is, the leader knows: --target m1\n" in shown
    assert "10.0.0.1:7 " in shown
    assert "free disk 25 MiB" in shown
    assert key not in shown
    assert (
        "\nof epoch [1]\nNot a member any more, according to m1, member 7\nThe disk of its database is full\n" in shown
    )
    assert "  election: none yet\n" in shown
    CliRunner().invoke(raft, ["status", "--target", "m 2"])
    assert asked == ["/internal/raft", "/internal/raft?target=m%202"]
