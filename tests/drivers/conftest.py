from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from drivers_kit import Machine, stream

from incus_actors.drivers.base import PoolSpec
from incus_actors.drivers.image_files import ImageFileStore
from incus_actors.drivers.lxc import LxcDriver
from incus_actors.drivers.process import ProcessDriver
from incus_actors.drivers.storage_dir import DirStorage
from incus_actors.drivers.tiny_image import BUSYBOX, TinyImage


@pytest.fixture(scope="session")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not BUSYBOX.exists():
        pytest.skip("needs busybox-static")
    return TinyImage().write_unified(tmp_path_factory.mktemp("image") / "tiny.tar.gz")


async def _machine(directory: Path, driver: LxcDriver | ProcessDriver, tarball: Path) -> Machine:
    store = ImageFileStore(directory / "images")
    added = await store.add(stream(tarball.read_bytes()))
    storage = DirStorage(directory)
    await storage.create_pool(PoolSpec("local"))
    return Machine(directory, driver, added.files, store, storage)


@pytest.fixture
async def lxc_machine(tmp_path: Path, tarball: Path) -> AsyncIterator[Machine]:
    driver = LxcDriver(tmp_path)
    if not driver.availability().available:
        pytest.skip(driver.availability().reason)
    machine = await _machine(tmp_path, driver, tarball)
    yield machine
    await machine.clean_up()


@pytest.fixture
async def process_machine(tmp_path: Path, tarball: Path) -> AsyncIterator[Machine]:
    machine = await _machine(tmp_path, ProcessDriver(tmp_path), tarball)
    yield machine
    await machine.clean_up()


@pytest.fixture(params=["lxc", "process"])
async def machine(request: pytest.FixtureRequest, tmp_path: Path, tarball: Path) -> AsyncIterator[Machine]:
    driver = LxcDriver(tmp_path) if request.param == "lxc" else ProcessDriver(tmp_path)
    if not driver.availability().available:
        pytest.skip(driver.availability().reason)
    if request.param == "lxc" and os.geteuid() != 0:
        pytest.skip("needs root")
    machine = await _machine(tmp_path, driver, tarball)
    yield machine
    await machine.clean_up()
