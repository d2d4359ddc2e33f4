"""Trees change places, and go without taking others along."""

from __future__ import annotations

import errno

import pytest

from incus_actors.drivers import trees
from incus_actors.drivers.base import DriverError


def test_two_trees_change_places(tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
        (path / path.name).touch()
    trees.exchange(one, other)
    assert (other / "one").exists()

    class Old:
        @staticmethod
        def renameat2(*_arguments):
            return -1

    monkeypatch.setattr(trees, "_libc", Old)
    monkeypatch.setattr(trees.ctypes, "get_errno", lambda: errno.EINVAL)
    trees.exchange(one, other)
    assert (one / "one").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]
    monkeypatch.setattr(trees.ctypes, "get_errno", lambda: errno.EROFS)
    with pytest.raises(DriverError, match="Read-only"):
        trees.exchange(one, other)


async def test_a_link_is_removed_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "doomed").mkdir()
    (tmp_path / "doomed/link").symlink_to(tmp_path / "precious")
    await trees.remove_tree(tmp_path / "doomed")
    await trees.remove_tree(tmp_path / "doomed")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
