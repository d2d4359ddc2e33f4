"""Rules for every test: real ones skip loudly where they can't run, and never in CI."""

from __future__ import annotations

import os

import pytest
import zfs_kit


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `real` need root."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="starts containers or network namespaces: run as root")
    for item in items:
        if "real" in item.keywords:
            item.add_marker(skip)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """tox runs the chosen tests in two parts, by marker: that all of them belong to the other one is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.markexpr:
        session.exitstatus = pytest.ExitCode.OK


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """In CI a skipped test of the core is a failure (INCUS_ACTORS_CI is set by .ci/run)."""
    report = yield
    if report.failed and zfs_kit.given_up and "zfs" in item.nodeid:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: {zfs_kit.given_up[0]}, and the test failed with it")
    if report.skipped and os.environ.get("INCUS_ACTORS_CI") and "may_skip" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing of the core may skip: {report.longrepr}"
    return report
