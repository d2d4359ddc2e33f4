"""The store: what is in it is complete, what fails leaves nothing."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from drivers_kit import stream

from incus_actors.drivers import image_archive
from incus_actors.drivers.base import ProgressReport
from incus_actors.drivers.image_files import ImageFileStore
from incus_actors.drivers.tiny_image import TinyImage
from incus_actors.errors import BadRequestError, ConflictError


@pytest.fixture
def store(tmp_path: Path) -> ImageFileStore:
    return ImageFileStore(tmp_path / "images")


def left(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "images").iterdir())


async def test_a_unified_image(store: ImageFileStore, tarball: Path, tmp_path: Path) -> None:
    data = tarball.read_bytes()
    reports: list[ProgressReport] = []
    added = await store.add(stream(data), progress=reports.append)
    fingerprint = hashlib.sha256(data).hexdigest()
    assert added.files.fingerprint == fingerprint
    assert (added.files.size_bytes, added.files.rootfs_file, added.files.compression) == (len(data), None, "gz")
    assert added.files.metadata_file.read_bytes() == data
    assert left(tmp_path) == [fingerprint]
    assert reports[-1].processed_bytes == len(data)
    assert store.get(fingerprint) == added.files
    again = await store.add(stream(data))
    assert again.files == added.files
    await store.delete(fingerprint)
    await store.delete(fingerprint)
    assert store.get(fingerprint) is None
    assert left(tmp_path) == []


async def test_a_split_image_is_hashed_as_one(store: ImageFileStore, tmp_path: Path) -> None:
    metadata, rootfs = TinyImage().write_split(tmp_path / "m", tmp_path / "r")
    whole = metadata.read_bytes() + rootfs.read_bytes()
    fingerprint = hashlib.sha256(whole).hexdigest()
    added = await store.add(
        stream(metadata.read_bytes()), stream(rootfs.read_bytes()), expected_fingerprint=fingerprint
    )
    assert added.files.size_bytes == len(whole)
    assert left(tmp_path) == [fingerprint, f"{fingerprint}.rootfs"]
    await store.delete(fingerprint)
    assert left(tmp_path) == []


async def test_a_wrong_fingerprint(store: ImageFileStore, tarball: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match="fingerprint doesn't match"):
        await store.add(stream(tarball.read_bytes()), expected_fingerprint="0" * 64)
    assert left(tmp_path) == []


async def test_a_refusal_by_the_caller(store: ImageFileStore, tarball: Path, tmp_path: Path) -> None:
    async def accept(fingerprint: str) -> None:
        raise ConflictError("Image with same fingerprint already exists")

    with pytest.raises(ConflictError):
        await store.add(stream(tarball.read_bytes()), accept=accept)
    assert left(tmp_path) == []


async def test_bad_input_leaves_nothing(store: ImageFileStore, tmp_path: Path) -> None:
    for data in (b"", b"junk" * 1000):
        with pytest.raises(BadRequestError):
            await store.add(stream(data))
        assert left(tmp_path) == []


async def test_too_large(tmp_path: Path, tarball: Path) -> None:
    store = ImageFileStore(tmp_path / "images", size_bytes_max=1000)
    with pytest.raises(BadRequestError, match="larger than"):
        await store.add(stream(tarball.read_bytes()))
    assert left(tmp_path) == []


async def test_an_upload_that_breaks_off(store: ImageFileStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100
        raise ConnectionResetError

    with pytest.raises(Exception, match="store the image"):
        await store.add(broken())
    assert left(tmp_path) == []


async def test_reconcile_after_a_crash(store: ImageFileStore, tarball: Path, tmp_path: Path) -> None:
    added = await store.add(stream(tarball.read_bytes()))
    images = tmp_path / "images"
    (images / "incoming-123").write_text("half")
    (images / "incoming-123.rootfs").write_text("half")
    (images / ("a" * 64 + ".rootfs")).write_text("its metadata never came")
    (images / "notes.txt").write_text("not ours")
    assert await store.reconcile(frozenset()) == [added.files.fingerprint]
    assert await store.reconcile(frozenset({added.files.fingerprint})) == []
    assert left(tmp_path) == sorted([added.files.fingerprint, "notes.txt"])


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63])
async def test_only_fingerprints_name_files(store: ImageFileStore, name: str) -> None:
    with pytest.raises(ValueError, match="no fingerprint"):
        store.get(name)
    with pytest.raises(ValueError, match="no fingerprint"):
        await store.delete(name)


async def test_an_image_deleted_while_it_is_looked_up_is_gone(
    store: ImageFileStore, tarball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = (await store.add(stream(tarball.read_bytes()))).files.fingerprint
    sniff = image_archive.sniff

    def deleted_first(path: Path) -> tuple[str, str]:
        path.unlink()
        return sniff(path)

    monkeypatch.setattr(image_archive, "sniff", deleted_first)
    assert store.get(fingerprint) is None
