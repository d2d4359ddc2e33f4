"""From the flags and the environment of the daemon to its parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from incus_actors import daemon
from incus_actors.cli.daemon import main
from incus_actors.daemon.parts import _build_core
from incus_actors.settings import Settings


@pytest.mark.parametrize(
    ("arguments", "environment", "kib"),
    [
        ([], {}, 64 << 10),
        (["--min-free", "7"], {}, 7 << 10),
        ([], {"INCUS_ACTORS_MIN_FREE_MIB": "256"}, 256 << 10),
    ],
)
def test_how_much_space_must_be_free_reaches_the_database(
    arguments: list[str],
    environment: dict[str, str],
    kib: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Settings] = []
    monkeypatch.setattr("incus_actors.cli.daemon.keep_small", lambda: True)
    monkeypatch.setattr(daemon, "run", lambda settings, log_level: started.append(settings) or 0)
    answer = CliRunner().invoke(main, arguments, env={"INCUS_DIR": str(tmp_path), **environment})
    assert answer.exit_code == 0, answer.output
    (settings,) = started
    assert _build_core(settings).consensus._limits.min_free_kib == kib


def test_less_than_nothing_is_refused() -> None:
    assert CliRunner().invoke(main, ["--min-free", "-1"]).exit_code == 2
