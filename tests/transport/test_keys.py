from __future__ import annotations

from pathlib import Path

import pytest

from incus_actors.transport.keys import CurveKeys, KeyFileError, generate_curve_keys, load_or_create_curve_keys


def test_made_once_and_private(tmp_path: Path) -> None:
    keys = load_or_create_curve_keys(tmp_path)
    assert load_or_create_curve_keys(tmp_path) == keys
    assert (tmp_path / "transport.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "transport.pub").read_text().strip() == keys.public_hex
    assert len(keys.public) == len(keys.secret) == 32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["transport.key", "transport.pub"]


def test_two_members_differ() -> None:
    assert generate_curve_keys().public != generate_curve_keys().public


def test_a_readable_secret_is_closed_again(tmp_path: Path) -> None:
    keys = load_or_create_curve_keys(tmp_path)
    (tmp_path / "transport.key").chmod(0o644)
    assert load_or_create_curve_keys(tmp_path) == keys
    assert (tmp_path / "transport.key").stat().st_mode & 0o777 == 0o600


def test_the_public_half_is_derived_when_it_is_gone(tmp_path: Path) -> None:
    keys = load_or_create_curve_keys(tmp_path)
    (tmp_path / "transport.pub").unlink()
    assert load_or_create_curve_keys(tmp_path) == keys
    assert (tmp_path / "transport.pub").read_text().strip() == keys.public_hex


@pytest.mark.parametrize("text", ["", "zz", "ab" * 31, "ab" * 33, "\x00binary", b"\xff\xfe"])
def test_a_damaged_key_is_never_replaced(tmp_path: Path, text: str | bytes) -> None:
    damaged = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "transport.key").write_bytes(damaged)
    with pytest.raises(KeyFileError, match="restore it"):
        load_or_create_curve_keys(tmp_path)
    assert (tmp_path / "transport.key").read_bytes() == damaged


def test_a_crash_while_writing_leaves_no_half_key(tmp_path: Path) -> None:
    (tmp_path / ".transport.key.new").write_text("half")
    keys = load_or_create_curve_keys(tmp_path)
    assert load_or_create_curve_keys(tmp_path) == keys


def test_the_secret_is_not_shown() -> None:
    keys = CurveKeys(b"p" * 32, b"s" * 32)
    assert "sss" not in repr(keys)
