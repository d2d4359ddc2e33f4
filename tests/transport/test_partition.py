"""A cut network between two members: nothing is evidence of death, and links come back soon after it heals."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

pytestmark = pytest.mark.real

SIDE = """
import asyncio, sys, time
from incus_actors.consensus.types import Member
from incus_actors.transport.address import PeerAddress, format_address
from incus_actors.transport.control_lane import ControlLane
from incus_actors.transport.keys import CurveKeys
from incus_actors.consensus import messages as m

class Say:
    def on_message(self, received): pass
    def on_link_up(self, peer): print("up", peer, flush=True)
    def on_link_down(self, peer, evidence): print("down", peer, evidence, flush=True)

async def main():
    own, other, secret, public, other_public = sys.argv[1:]
    own, other = int(own), int(other)
    lane = ControlLane(CurveKeys(bytes.fromhex(public), bytes.fromhex(secret)), f"10.231.77.{own}", 20001)
    await lane.start(Say())
    lane.set_peers([Member(other, format_address(PeerAddress(f"10.231.77.{other}", 20001, 20002, other_public)))], own)
    while True:  # heartbeats, as a leader sends them
        lane.send(m.Envelope(1, b"cluster0", 0, own, other, 1, 1, m.ReadIndex(1)))
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


def run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them."""
    names = (f"ia-t{os.getpid()}-1", f"ia-t{os.getpid()}-2")
    try:
        for name in names:
            run("ip", "netns", "add", name)
        run("ip", "-n", names[0], "link", "add", "e0", "type", "veth", "peer", "name", "e0", "netns", names[1])
        for number, name in enumerate(names, 1):
            run("ip", "-n", name, "addr", "add", f"10.231.77.{number}/24", "dev", "e0")
            run("ip", "-n", name, "link", "set", "e0", "up")
        yield names
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError):
                run("ip", "netns", "del", name)


async def test_a_cut_cable_is_no_evidence_and_heals(spaces: tuple[str, str]) -> None:
    from incus_actors.transport.keys import generate_curve_keys

    keys = [generate_curve_keys(), generate_curve_keys()]
    processes = []
    try:
        for i, name in enumerate(spaces):
            own, other = keys[i], keys[1 - i]
            process = await asyncio.create_subprocess_exec(
                "ip", "netns", "exec", name, sys.executable, "-c", SIDE,
                str(i + 1), str(2 - i), own.secret.hex(), own.public.hex(), other.public.hex(),
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            processes.append(process)
        lines = [process.stdout for process in processes]
        for i, stream in enumerate(lines):
            assert stream is not None
            assert await asyncio.wait_for(stream.readline(), 20) == b"up %d\n" % (2 - i)
        for i, name in enumerate(spaces):  # frames to a card that nobody has vanish without a word
            ghost = ("lladdr", "02:00:00:00:00:99", "nud", "permanent")
            run("ip", "-n", name, "neigh", "replace", f"10.231.77.{2 - i}", *ghost, "dev", "e0")
        await asyncio.sleep(4)  # longer than TCP_USER_TIMEOUT: both sides dial into the void by now
        for i, name in enumerate(spaces):
            run("ip", "-n", name, "neigh", "del", f"10.231.77.{2 - i}", "dev", "e0")
        healed = asyncio.get_running_loop().time()
        for i, stream in enumerate(lines):
            assert stream is not None
            heard = [await asyncio.wait_for(stream.readline(), 10)]
            while heard[-1].startswith(b"down"):
                heard.append(await asyncio.wait_for(stream.readline(), 10))
            assert heard[-1] == b"up %d\n" % (2 - i)
            print(f"side {i + 1}: {heard} after {asyncio.get_running_loop().time() - healed:.2f} s")
            assert b"E2" not in b"".join(heard), "a partition refuses nothing"
    finally:
        for process in processes:
            process.kill()
            await process.wait()
