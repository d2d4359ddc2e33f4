from __future__ import annotations

from pathlib import Path

import pytest

from incus_actors.drivers.base import DriverError, IdMapEntry
from incus_actors.drivers.idmap import default_idmap, host_base, lxc_lines, parse_sub_ids


def test_the_files(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_text("alice:100000:65536\nroot:1000000:1000000000\n")
    (tmp_path / "subgid").write_text("root:1000000:1000000000\n")
    assert default_idmap(tmp_path) == (IdMapEntry("both", 0, 1_000_000, 1_000_000_000),)
    (tmp_path / "subgid").write_text("root:2000000:65536\n")
    entries = default_idmap(tmp_path)
    assert lxc_lines(entries) == ["u 0 1000000 1000000000", "g 0 2000000 65536"]
    assert host_base(entries) == (1_000_000, 2_000_000)


def test_without_files_the_range_of_incus(tmp_path: Path) -> None:
    assert host_base(default_idmap(tmp_path)) == (1_000_000, 1_000_000)


@pytest.mark.parametrize("text", ["", "alice:100000:65536\n", "root:1000000:100\n", "root:0:65536\n", "root:x:y\n"])
def test_no_usable_range(tmp_path: Path, text: str) -> None:
    (tmp_path / "subuid").write_text(text)
    with pytest.raises(DriverError, match="gives root no range"):
        default_idmap(tmp_path)


def test_garbage_is_ignored() -> None:
    assert parse_sub_ids("# comment\n\nroot:1:2:3\nroot:5:6\n0:7:8\n") == [(5, 6), (7, 8)]


def test_an_empty_map_is_the_host() -> None:
    assert host_base(()) == (0, 0)
    assert lxc_lines(()) == []
