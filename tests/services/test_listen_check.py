"""Whether an address can be bound is found out by binding it, and told in Go's words."""

from __future__ import annotations

import socket

import pytest

from incus_actors.errors import BadRequestError, MemberError
from incus_actors.services.listen_check import check_bind

KEY = "core.https_address"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (
            "1.2.3.4",
            (
                'Cannot listen on network HTTPS socket "1.2.3.4:8443": listen tcp 1.2.3.4:8443: '
                "bind: cannot assign requested address"
            ),
        ),
        ("1.2.3.4:x", 'Cannot listen on network HTTPS socket "1.2.3.4:x": listen tcp: lookup tcp/x: unknown port'),
        (
            "127.0.0.1:99999",
            'Cannot listen on network HTTPS socket "127.0.0.1:99999": listen tcp: address 99999: invalid port',
        ),
    ],
)
async def test_what_cannot_be_bound(address, text):
    with pytest.raises(MemberError) as caught:
        await check_bind(KEY, address, {})
    assert str(caught.value) == text


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0", ":0", "0.0.0.0:0"])
async def test_what_can(address):
    await check_bind(KEY, address, {})


async def test_a_name_nobody_knows():
    with pytest.raises(BadRequestError, match=r"^cannot set 'core.https_address' to 'no such': Couldn't resolve"):
        await check_bind(KEY, "no such", {})


async def test_a_port_in_use_is_fine_only_if_it_is_our_own():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MemberError, match="address already in use"):
            await check_bind(KEY, f"127.0.0.1:{port}", {})
        await check_bind(KEY, f"127.0.0.1:{port}", {KEY: f":{port}"})
        with pytest.raises(MemberError, match="address already in use"):  # the API has it: metrics can't
            await check_bind("core.metrics_address", f"127.0.0.1:{port}", {KEY: f":{port}"})
