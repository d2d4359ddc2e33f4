"""Addresses of members are whole, and never a wildcard (WANTS 26)."""

from __future__ import annotations

import pytest

from incus_actors.errors import BadRequestError
from incus_actors.services import addresses


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("10.0.0.1", "10.0.0.1:8443"),
        ("10.0.0.1:9", "10.0.0.1:9"),
        (" host.example ", "host.example:8443"),
        ("[fd00::1]", "[fd00::1]:8443"),
        ("[fd00::1]:1", "[fd00::1]:1"),
        ("fd00::1", "[fd00::1]:8443"),
        (":8443", ":8443"),
    ],
)
def test_normalise(given, whole):
    assert addresses.normalise(given) == whole


@pytest.mark.parametrize("given", ["h:0", "h:65536", "h:x", "[fd00::1", "[fd00::1]x", "h:-1"])
def test_bad(given):
    with pytest.raises(BadRequestError):
        addresses.normalise(given)


@pytest.mark.parametrize("given", ["", ":8443", "0.0.0.0", "0.0.0.0:1", "[::]", "[::]:8443", "::", "*:8443"])
def test_g26_wildcards(given):
    assert addresses.is_wildcard(given)


@pytest.mark.parametrize("given", ["10.0.0.1", "localhost:1", "[::1]:8443"])
def test_real_ones(given):
    assert not addresses.is_wildcard(given)
