"""Log lines for people and for machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from incus_actors import logs


@pytest.fixture(autouse=True)
def keep_root() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], _ = before
    root.setLevel(before[1])


def written(path: Path, log_format: str) -> str:
    logs.configure(level=logging.INFO, log_format=log_format, logfile=path)
    logger = logging.getLogger("incus_actors.test")
    logger.debug("not shown")
    logger.info("joined %s", "m2", extra={"member": 2})
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("failed")
    return path.read_text()


def test_text_lines(tmp_path: Path) -> None:
    text = written(tmp_path / "log", "text")
    assert "[info] joined m2 member=2\n" in text
    assert "not shown" not in text
    assert "ValueError: boom" in text


def test_json_lines(tmp_path: Path) -> None:
    first, second = (json.loads(line) for line in written(tmp_path / "log", "json").splitlines())
    assert (first["event"], first["level"], first["member"]) == ("joined m2", "info", 2)
    assert "ValueError: boom" in second["exception"]
