"""The core is sans IO: what it may import, and that nothing leaks in (DESIGN D1, D5)."""

from __future__ import annotations

import ast
import random
import sys
from pathlib import Path

import pytest

import incus_actors.consensus
from incus_actors.consensus.types import Timing

PACKAGE = Path(incus_actors.consensus.__file__).parent
CORE = [
    "candidate", "compaction", "configuration", "core", "effects", "events", "features", "follower", "invariants", "leader", "log",
    "measure", "membership", "messages", "node", "policy", "progress", "proposals", "quorum", "reads", "reception",
    "replication", "snapshots", "suspicion", "types", "views", "voting",
]  # fmt: skip
PURE_MODEL = "incus_actors.model.features"  #: data and arithmetic, shared with the state
FORBIDDEN = {"time", "random", "asyncio", "sqlite3", "socket", "os", "threading", "datetime", "secrets", "uuid", "io"}


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_only_the_standard_library_and_its_siblings(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            if top == "incus_actors":
                siblings = (
                    [alias.name for alias in node.names] if name == "incus_actors.consensus" else [name.split(".")[-1]]
                )
                if name == PURE_MODEL:
                    continue
                assert name.startswith("incus_actors.consensus"), name
                assert set(siblings) <= set(CORE), siblings
            else:
                assert top in sys.stdlib_module_names
                assert top not in FORBIDDEN, name


def test_the_one_module_from_outside_is_pure_too() -> None:
    tree = ast.parse(Path(sys.modules[PURE_MODEL].__file__ or "").read_text())
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert sorted(filter(None, imported)) == ["__future__", "dataclasses", "typing"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


@pytest.mark.parametrize("module", CORE)
def test_no_lease_anywhere(module: str) -> None:
    """Lease reads and forgetting a leader must not exist together (D4)."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [name for name in names if "lease" in name.lower().replace("release", "")]


def test_timeouts_leave_room_for_lost_heartbeats() -> None:
    timing = Timing()
    assert timing.election_min_ms >= 9 * timing.heartbeat_ms
    assert random.Random(1).randint(timing.election_min_ms, timing.election_max_ms) <= 600
