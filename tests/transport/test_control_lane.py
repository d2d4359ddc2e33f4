"""The control lane between members that are well, and what it refuses."""

from __future__ import annotations

import asyncio
import threading

import pytest
from lane_kit import HOST, Ear, Peer, Stranger, acquaint, envelope, peers, until

from incus_actors.consensus import messages as m
from incus_actors.consensus.lane import LaneListener, RaftLane
from incus_actors.consensus.types import Member
from incus_actors.transport.address import PeerAddress, format_address
from incus_actors.transport.codec import CONTROL_MAX, encode
from incus_actors.transport.control_lane import ControlLane
from incus_actors.transport.keys import generate_curve_keys

HEADER = b"\x01\x01"


def test_it_is_a_raft_lane() -> None:
    lane: RaftLane = ControlLane(generate_curve_keys(), HOST)
    listener: LaneListener = Ear()
    assert lane.links() == frozenset()
    assert listener is not None


async def test_links_and_messages_between_three() -> None:
    async with peers(1, 2, 3) as (a, b, c):
        assert a.lane.links() == {2, 3}
        assert sorted(a.ear.events) == [("up", 2, ""), ("up", 3, "")]
        for i in range(300):
            a.lane.send(envelope(1, 2, m.ReadIndex(i)))
        c.lane.send(envelope(3, 2))
        await until(lambda: len(b.ear.messages) == 301)
        assert [e.message for e in b.ear.messages if e.source == 1] == [m.ReadIndex(i) for i in range(300)]
        assert a.ear.messages == c.ear.messages == []


async def test_nobody_there_and_not_connected() -> None:
    async with peers(1, 2) as (a, _):
        a.lane.send(envelope(1, 9))
        assert a.count("send_down") == 1


async def test_a_full_queue_drops_and_counts() -> None:
    async with peers(1, 2) as (a, b):
        body = m.Propose(b"p" * 16, m.EntryKind.SQL, b"x" * 100_000, 0)
        for _ in range(3000):  # without a turn of the loop nobody reads
            a.lane.send(envelope(1, 2, body))
        assert a.count("send_full") > 0
        await until(lambda: len(b.ear.messages) == a.count("sent"))
        assert a.count("sent") + a.count("send_full") == 3000
        assert a.ear.downs() == []


async def test_too_large_is_not_sent() -> None:
    async with peers(1, 2) as (a, b):
        a.lane.send(envelope(1, 2, m.Propose(b"", m.EntryKind.SQL, b"x" * CONTROL_MAX, 0)))
        a.lane.send(envelope(1, 2))
        await until(lambda: len(b.ear.messages) == 1)
        assert a.count("too_large") == 1


async def test_drain_delivers_without_a_turn_of_the_loop() -> None:
    async with peers(1, 2) as (a, b):
        a.lane.send(envelope(1, 2))
        for _ in range(1000):
            b.lane.drain()
            if b.ear.messages:
                break
            threading.Event().wait(0.001)
        assert b.ear.messages == [envelope(1, 2)]


async def test_unknown_key_gets_no_connection() -> None:
    async with peers(1, 2) as (a, _):
        stranger = Stranger(a, generate_curve_keys())
        try:
            stranger.send(HEADER + encode(envelope(2, 1)))
            await until(lambda: a.count("zap_refused") == 1)
            await asyncio.sleep(0.05)
            assert a.ear.messages == []
        finally:
            stranger.close()


async def test_a_plain_client_gets_no_connection() -> None:
    async with peers(1, 2) as (a, _):
        stranger = Stranger(a, None)
        try:
            stranger.send(HEADER + encode(envelope(2, 1)))
            await until(lambda: a.count("inbound_handshake_failed") >= 1)
            assert a.ear.messages == []
            assert a.count("received") == 0
        finally:
            stranger.close()


async def test_noise_on_the_port_does_not_hurt() -> None:
    async with peers(1, 2) as (a, b):
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b""):
            _, writer = await asyncio.open_connection(HOST, a.lane.bound_port)
            writer.write(noise)
            await writer.drain()
            writer.close()
        b.lane.send(envelope(2, 1))
        await until(lambda: len(a.ear.messages) == 1)
        assert a.ear.downs() == b.ear.downs() == []


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (HEADER + encode(envelope(3, 1)), "wrong_source"),
        (HEADER + b"garbage", "malformed"),
        (HEADER, "malformed"),
        (b"", "malformed"),
        (b"\x01", "malformed"),
        (b"\x02\x01" + encode(envelope(2, 1)), "unknown_version"),
        (HEADER + encode(m.Envelope(9, b"cluster0", 0, 2, 1, 1, 1, m.ReadIndex(1))), "unknown_version"),
        (b"\x01\x63" + encode(envelope(2, 1)), "unknown_kind"),
        (HEADER + b"x" * (CONTROL_MAX + 1), "oversized"),
    ],
)
async def test_a_member_that_talks_nonsense_is_dropped_and_counted(frame: bytes, counter: str) -> None:
    async with peers(1, 2) as (a, b):
        stranger = Stranger(a, b.keys)  # the key of member 2, used by something that is not our lane
        try:
            stranger.send(frame)
            stranger.send(HEADER, encode(envelope(2, 1)))
            stranger.send(HEADER + encode(envelope(2, 1)))
            await until(lambda: len(a.ear.messages) == 1)
            assert a.count(counter) == (2 if counter == "malformed" else 1)
            assert a.count("malformed") >= 1, "two parts"
        finally:
            stranger.close()


async def test_an_absurd_message_costs_its_sender_the_connection() -> None:
    async with peers(1, 2) as (a, b):
        stranger = Stranger(a, b.keys)
        try:
            stranger.send(HEADER + b"x" * (3 * CONTROL_MAX))
            await until(lambda: a.count("inbound_handshake_failed") + a.count("zap_accepted") >= 2)
            b.lane.send(envelope(2, 1))
            await until(lambda: len(a.ear.messages) == 1)
            assert a.count("oversized") == 0
        finally:
            stranger.close()


async def test_a_removed_member_is_cut_off_at_once() -> None:
    async with peers(1, 2, 3) as (a, b, c):
        b.lane.send(envelope(2, 1))
        b.lane.send(envelope(2, 1))
        a.lane.set_peers([a.member(), c.member()], 1)  # what waits in the socket is from a stranger now
        await until(lambda: a.count("stranger") == 2 or a.count("cut_off") == 1)
        assert a.ear.messages == []
        assert a.lane.links() == {3}
        await until(lambda: 1 not in b.lane.links())
        await until(lambda: b.lane.refusing() == {1})
        b.lane.send(envelope(2, 1))
        c.lane.send(envelope(3, 1))
        await until(lambda: len(a.ear.messages) == 1)
        assert a.ear.messages[0].source == 3
        assert a.ear.downs() == [], "our own doing is no evidence"


async def test_a_member_that_comes_back_is_let_in_again() -> None:
    async with peers(1, 2) as (a, b):
        a.lane.set_peers([a.member()], 1)
        await until(lambda: b.lane.links() == frozenset() and b.lane.refusing() == {1})
        acquaint([a, b])
        await until(lambda: a.lane.links() == {2} and b.lane.links() == {1})
        assert b.lane.refusing() == frozenset()


async def test_a_member_not_known_yet_gets_in_when_it_is() -> None:
    a, b = Peer(1), Peer(2)
    try:
        await a.lane.start(a.ear)
        await b.lane.start(b.ear)
        b.lane.set_peers([a.member(), b.member()], 2)
        await until(lambda: b.count("handshake_refused") >= 2)  # it keeps trying
        a.lane.set_peers([a.member(), b.member()], 1)
        await until(lambda: a.lane.links() == {2} and b.lane.links() == {1})
    finally:
        await a.lane.close()
        await b.lane.close()


async def test_peers_set_before_start_are_dialled_at_start() -> None:
    async with peers(1) as (a,):
        late = Peer(2)
        late.lane.set_peers([a.member()], 2)
        await late.lane.start(late.ear)
        try:
            acquaint([a, late])
            await until(lambda: late.lane.links() == {1})
        finally:
            await late.lane.close()


async def test_an_address_that_is_none_is_left_out() -> None:
    async with peers(1, 2) as (a, b):
        a.lane.set_peers([a.member(), b.member(), Member(3, "standalone")], 1)
        assert a.count("bad_address") == 1
        assert a.lane.links() == {2}


async def test_rebind_moves_the_port_and_is_no_death() -> None:
    async with peers(1, 2) as (a, b):
        before = a.lane.bound_port
        after = a.lane.rebind("127.0.0.2", 0)
        assert after != before
        await until(lambda: b.lane.links() == frozenset())  # libzmq ends what came through the old listener
        assert b.ear.downs() == [], "the other direction stands"
        address = format_address(PeerAddress("127.0.0.2", after, after, a.keys.public_hex))
        b.lane.set_peers([Member(1, address), b.member()], 2)
        await until(lambda: b.lane.links() == {1} and a.lane.links() == {2})
        b.lane.send(envelope(2, 1))
        await until(lambda: len(a.ear.messages) == 1)


async def test_a_taken_port_is_an_error_and_ports_are_free_after_close() -> None:
    async with peers(1) as (a,):
        port = a.lane.bound_port
        second = Peer(2, port=port)
        with pytest.raises(OSError, match="can't listen"):
            await second.lane.start(second.ear)
        await second.lane.close()
    third = Peer(3, port=port)
    await third.lane.start(third.ear)
    assert third.lane.bound_port == port
    await third.lane.close()


async def test_bulk_goes_where_it_is_told() -> None:
    async with peers(1, 2) as (a, b):
        handed: list[m.Envelope] = []
        chunk = envelope(1, 2, m.SnapshotChunk("s", 0, b"x", 1))
        a.lane.send(chunk, bulk=True)
        await until(lambda: b.ear.messages == [chunk])
        a.lane.bulk = handed.append
        a.lane.send(chunk, bulk=True)
        assert handed == [chunk]
        a.lane.receive_bulk(envelope(2, 1))
        await until(lambda: len(a.ear.messages) == 1)


async def test_a_second_connection_of_a_member_replaces_the_first() -> None:
    async with peers(1, 2) as (a, b):
        twin = Stranger(a, b.keys)
        try:
            twin.send(b"\x01\x00")
            await until(lambda: a.count("superseded") >= 1)
            await until(lambda: b.count("dials") >= 2)  # the first was shut; its lane dials anew, and wins again
            await until(lambda: a.count("superseded") >= 2 and a.lane.links() == {2})
            b.lane.send(envelope(2, 1))
            await until(lambda: len(a.ear.messages) == 1)
        finally:
            twin.close()


async def test_without_a_zap_handler_nobody_gets_in() -> None:
    async with peers(1) as (a,):
        assert a.lane._mesh._zap is not None
        a.lane._mesh._zap.close()
        late = Peer(2)
        await late.lane.start(late.ear)
        acquaint([a, late])
        try:
            await asyncio.sleep(0.2)
            late.lane.send(envelope(2, 1))
            assert a.ear.messages == []
            assert late.lane.links() == frozenset()
            assert late.count("send_down") == 1
        finally:
            await late.lane.close()
