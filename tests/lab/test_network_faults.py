"""What the faults of the network do to bytes: else a nemesis run shows nothing."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from incus_actors.lab.network import NetworkLab

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]

PORT = 7007
ECHO = f"""
import socket, threading
def serve(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
def accept(listener):
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
listener = socket.create_server(("", {PORT}))
threading.Thread(target=accept, args=(listener,), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""
SENT = bytes(range(256))


@pytest.fixture
def lab() -> Iterator[NetworkLab]:
    """One member with an echo server in its namespace."""
    network = NetworkLab("nft", 1)
    try:
        network.up()
        server = subprocess.Popen(
            [*network.enter(1), sys.executable, "-c", ECHO], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield network
        finally:
            server.kill()
            server.wait(timeout=10)
            server.stdout.close()
    finally:
        network.down()


def dial(lab: NetworkLab) -> socket.socket:
    return socket.create_connection((lab.address(1), PORT), timeout=10)


def echoed(connection: socket.socket, data: bytes = SENT) -> bytes:
    connection.sendall(data)
    found = b""
    while len(found) < len(data):
        found += connection.recv(65536)
    return found


def sent_again(connection: socket.socket) -> int:
    """How many segments of it TCP has sent again: tcpi_total_retrans of struct tcp_info."""
    (count,) = struct.unpack_from("I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)
    return int(count)


def test_altered_packets_arrive_with_one_other_byte(lab: NetworkLab) -> None:
    with dial(lab) as connection:
        lab.corrupt(1, every=1, offset=9)
        assert echoed(connection) == SENT[:9] + b"X" + SENT[10:]
        lab.corrupt_nothing(1)
        assert echoed(connection) == SENT


def test_refused_connections_are_reset_and_those_there_stay(lab: NetworkLab) -> None:
    with dial(lab) as connection:
        lab.refuse(1)
        with pytest.raises(ConnectionRefusedError):
            dial(lab)
        assert echoed(connection) == SENT
        lab.reset_connections(1)
        with pytest.raises(ConnectionResetError):
            echoed(connection)
    lab.refuse_nothing(1)
    with dial(lab) as connection:
        assert echoed(connection) == SENT


def test_lost_packets_are_sent_again(lab: NetworkLab) -> None:
    with dial(lab) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert echoed(connection) == SENT
        assert sent_again(connection) == 0
        lab.lose(1, 20)
        assert all(echoed(connection) == SENT for _ in range(60))
        lab.lose_nothing(1)
        assert sent_again(connection) > 0


def test_a_narrow_link_takes_its_time(lab: NetworkLab) -> None:
    with dial(lab) as connection:
        lab.slow(1, 512)
        begin = time.monotonic()
        echoed(connection, SENT * 128)  # 32 KiB: half a second
        narrow = time.monotonic() - begin
        assert narrow > 0.3
        lab.fast(1)
        begin = time.monotonic()
        echoed(connection, SENT * 128)
        assert time.monotonic() - begin < narrow


def round_trips_s(connection: socket.socket, count: int = 20) -> list[float]:
    found = []
    for _ in range(count):
        begin = time.monotonic()
        assert echoed(connection) == SENT
        found.append(time.monotonic() - begin)
    return found


def test_packets_come_late_and_the_link_is_as_before_when_it_ends(lab: NetworkLab) -> None:
    with dial(lab) as connection:
        quick = min(round_trips_s(connection))
        lab.delay(1, "late")
        late = round_trips_s(connection, 5)
        assert min(late) > 0.110
        assert echoed(connection, SENT * 4096) == SENT * 4096  # large segments, of which the card was to make packets
        lab.delay_nothing(1)
        assert echoed(connection) == SENT
        assert min(round_trips_s(connection)) < max(quick * 5, 0.01)


@pytest.mark.parametrize("how", ["disorder", "twice"])
def test_whatever_the_order_of_packets_tcp_gives_the_same_bytes(lab: NetworkLab, how: str) -> None:
    with dial(lab) as connection:
        lab.delay(1, how)
        assert echoed(connection, SENT * 1024) == SENT * 1024
        lab.cut(1)
        time.sleep(0.2)
        lab.heal(1)  # the relay lives on
        assert echoed(connection) == SENT
        lab.delay_nothing(1)
        assert echoed(connection) == SENT


def test_a_closed_listener_takes_nobody_and_its_connections_stay(lab: NetworkLab) -> None:
    with dial(lab) as connection:
        assert lab.listening(1) == {PORT}
        lab.close_listeners(1, f"sport != :{PORT}")
        assert lab.listening(1) == {PORT}
        lab.close_listeners(1, f"sport = :{PORT}")
        assert lab.listening(1) == set()
        with pytest.raises(ConnectionRefusedError):
            dial(lab)
        assert echoed(connection) == SENT
