"""Sizes, expiries and addresses as Incus writes them."""

from __future__ import annotations

import pytest

from incus_actors.model import config_values as values


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1024", 1024),
        ("5B", 5),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("2GiB", 2 << 30),
        ("3MB", 3_000_000),
        ("1EiB", 1 << 60),
        ("8bit", 1),
        ("8Mbit", 1_000_000),
        ("7bytes", 7),
    ],
)
def test_sizes(text, size_bytes):
    assert values.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "B", "1KB", "1 GB", "-1", "1.5GB", "9EiB", "1\n", "١"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match=r"^Invalid value: "):
        values.parse_size(text)


def test_expiry_tells_minutes_from_months():
    assert values.parse_expiry_s("1M 2H 3d") == 60 + 7200 + 3 * 86400
    assert values.parse_expiry_s("1m") == 30 * 86400
    assert values.parse_expiry_s("") == 0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("1.2.3.4", ("1.2.3.4", "8443")),
        ("1.2.3.4:99", ("1.2.3.4", "99")),
        (":99", ("", "99")),
        ("[::1]", ("::1", "8443")),
        ("[::1]:99", ("::1", "99")),
        ("::1", ("::1", "8443")),
        ("host:99", ("host", "99")),
    ],
)
def test_addresses(text, address):
    assert values.split_address(text) == address


def test_wildcards():
    assert values.is_wildcard("")
    assert values.is_wildcard("::")
    assert not values.is_wildcard("127.0.0.1")
