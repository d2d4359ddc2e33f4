from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_actors.transport.address import AddressError, PeerAddress, endpoint, format_address, parse_address

KEY = "ab" * 32


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1", "::1", "fe80::1", "node-1.example.org", "localhost"])
def test_round_trip(host: str) -> None:
    address = PeerAddress(host, 20001, 65535, KEY)
    text = format_address(address)
    assert parse_address(text) == address
    assert parse_address(text).public_key == bytes.fromhex(KEY)


def test_how_it_looks() -> None:
    assert format_address(PeerAddress("10.0.0.1", 1, 2, KEY)) == f"10.0.0.1:1:2:{KEY}"
    assert format_address(PeerAddress("::1", 1, 2, KEY)) == f"[::1]:1:2:{KEY}"
    assert endpoint("10.0.0.1", 5) == "tcp://10.0.0.1:5"
    assert endpoint("::1", 0) == "tcp://[::1]:*"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1",
        f"10.0.0.1:1:{KEY}",
        f"10.0.0.1:0:2:{KEY}",
        f"10.0.0.1:1:65536:{KEY}",
        f"10.0.0.1:1:2:{KEY[:-1]}",
        f"10.0.0.1:1:2:{KEY.upper()}",
        f"10.0.0.1:1:2:{KEY}\n",
        f" 10.0.0.1:1:2:{KEY}",
        f"10.0.0.300:1:2:{KEY}",
        f"10.0.1:1:2:{KEY}",
        f"::1:1:2:{KEY}",
        f"[10.0.0.1]:1:2:{KEY}",
        f"[zz]:1:2:{KEY}",
        f"-bad:1:2:{KEY}",
        f"a..b:1:2:{KEY}",
        f"ho st:1:2:{KEY}",
        f"*:1:2:{KEY}",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@given(st.text(max_size=120))
def test_noise(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


def test_an_impossible_address_is_not_written() -> None:
    for address in (PeerAddress("a b", 1, 2, KEY), PeerAddress("a", 0, 2, KEY), PeerAddress("a", 1, 2, "short")):
        with pytest.raises(AddressError):
            format_address(address)
