"""What is heard on the network is read with suspicion. (Announcing and browsing for real: tests/cli/test_discovery.py)"""

from __future__ import annotations

from typing import Any

import pytest
from zeroconf import ServiceInfo

from incus_actors.transport.mdns import SERVICE, Heard, _label, _resolved

FINGERPRINT = "ab" * 32


def info(**changes: Any) -> ServiceInfo:
    given: dict[str, Any] = {
        "port": 4711,
        "parsed_addresses": ["10.0.0.2"],
        "properties": {"v": "1", "name": "two", "fp": FINGERPRINT},
    }
    texts = {**given["properties"], **changes.pop("texts", {})}
    return ServiceInfo(SERVICE, f"x.{SERVICE}", **{**given, **changes, "properties": texts})


def test_what_a_server_says_is_understood() -> None:
    heard = _resolved(info(parsed_addresses=["fd42::2", "10.0.0.2", "fe80::1", "127.0.0.1", "224.0.0.1", "0.0.0.0"]))
    assert heard == Heard("two", ("10.0.0.2", "fd42::2"), 4711, FINGERPRINT)


@pytest.mark.parametrize(
    "strange",
    [
        {"port": 0},
        {"parsed_addresses": ["127.0.0.1"]},
        {"parsed_addresses": []},
        {"texts": {"v": "2"}},
        {"texts": {"fp": ""}},
        {"texts": {"fp": "AB" * 32}},
        {"texts": {"fp": "ab" * 33}},
        {"texts": {"fp": b"\xff" * 64}},
    ],
)
def test_anything_else_is_not(strange: dict[str, Any]) -> None:
    assert _resolved(info(**strange)) is None


def test_nobody_answers() -> None:
    assert _resolved(None) is None


def test_names_cannot_paint_the_terminal() -> None:
    heard = _resolved(info(texts={"name": "a\n\x1b[31m" + "x" * 100}))
    assert heard is not None
    assert heard.name.startswith("a??[31mx")
    assert len(heard.name) == 63


@pytest.mark.parametrize(("name", "label"), [("vm", "vm"), ("a.b_c", "a-b-c"), ("ü", "server"), ("", "server"), ("x" * 90, "x" * 40)])  # fmt: skip
def test_names_become_labels(name: str, label: str) -> None:
    assert _label(name) == label
