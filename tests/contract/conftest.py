"""Where the recorded exchanges of a real Incus 6.0.4 are. They are not part of this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from replay import captures_directory

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real daemons; and nothing to compare with on a machine without the recordings."""
    for item in items:
        if Path(item.fspath).is_relative_to(HERE) and "replay" in item.name:
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.may_skip)
            if captures_directory() is None:
                item.add_marker(
                    pytest.mark.skip(
                        reason="no recordings of a real Incus: set INCUS_ACTORS_CONTRACT to ../shared/contract"
                    )
                )
            elif os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="network namespaces need root"))
