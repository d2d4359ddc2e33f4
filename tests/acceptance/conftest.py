"""Real daemons in network namespaces, driven by the stock `incus` client. Needs root; skips loudly elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from incus_actors.drivers.tiny_image import TinyImage
from incus_actors.lab.cluster import LabCluster
from incus_actors.lab.processes import LabMember

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything here is real."""
    for item in items:
        if Path(item.fspath).is_relative_to(HERE):
            item.add_marker(pytest.mark.real)
            if shutil.which("incus") is None:
                item.add_marker(pytest.mark.skip(reason="no stock incus client: tools/install-incus-client"))


class Incus:
    """The stock client against one member."""

    def __init__(self, member: LabMember, configuration: Path) -> None:
        self.member = member
        self.configuration = configuration

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which the client reaches this member."""
        return {**os.environ, "INCUS_DIR": str(self.member.directory), "INCUS_CONF": str(self.configuration)}

    def run(self, *arguments: str, input: str | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:  # noqa: A002
        """Run the client, whatever it says."""
        return subprocess.run(
            ["incus", *arguments],
            env=self.environment,
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def __call__(self, *arguments: str, input: str | None = None, timeout: float = 60) -> str:  # noqa: A002
        """Run the client; it must succeed. Return its standard output."""
        done = self.run(*arguments, input=input, timeout=timeout)
        assert done.returncode == 0, (
            f"incus {' '.join(arguments)}: {done.stderr}{done.stdout}\n{self.member.log_tail(15)}"
        )
        return done.stdout

    def fails(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002
        """Run the client; it must fail with exit code 1. Return its standard error."""
        done = self.run(*arguments, input=input)
        assert done.returncode == 1, f"incus {' '.join(arguments)} should fail: {done.stdout}{done.stderr}"
        return done.stderr.strip()


@pytest.fixture(scope="session")
def client_configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client configuration directory of our own."""
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="session")
def incus_on(client_configuration: Path) -> Callable[[LabMember], Incus]:
    """Make a client of a member."""
    return lambda member: Incus(member, client_configuration)


@pytest.fixture(scope="session")
def cluster() -> Iterator[LabCluster]:
    """Three members of one cluster, shared by the tests that leave it as they found it."""
    lab = LabCluster.in_namespaces(3, prefix="act")
    try:
        lab.form()
        lab.wait_until_healthy()
        yield lab
    finally:
        lab.destroy()


@pytest.fixture
def fresh_cluster() -> Iterator[LabCluster]:
    """Three members of one cluster for a test that breaks it."""
    lab = LabCluster.in_namespaces(3, prefix="acf")
    try:
        lab.form()
        lab.wait_until_healthy()
        yield lab
    finally:
        lab.destroy()


@pytest.fixture
def servers() -> Iterator[Callable[[int], LabCluster]]:
    """Start standalone daemons in namespaces."""
    labs: list[LabCluster] = []

    def start(count: int) -> LabCluster:
        lab = LabCluster.in_namespaces(count, prefix="acs")
        labs.append(lab)
        for member in lab.members:
            member.start()
        for member in lab.members:
            member.wait_until_ready()
        return lab

    yield start
    for lab in labs:
        lab.destroy()


@pytest.fixture(scope="session")
def unified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unified tarball of a busybox system."""
    return TinyImage().write_unified(tmp_path_factory.mktemp("image") / "tiny.tar.gz")


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Metadata tarball and root file system of a busybox system."""
    directory = tmp_path_factory.mktemp("split")
    return TinyImage(variant="split").write_split(directory / "meta.tar.gz", directory / "rootfs.tar.gz")


@pytest.fixture(scope="session")
def image(cluster: LabCluster, unified: Path, incus_on: Callable[[LabMember], Incus]) -> str:
    """The alias of an image that the shared cluster has."""
    incus_on(cluster.members[0])("image", "import", str(unified), "--alias", "tiny")
    return "tiny"
