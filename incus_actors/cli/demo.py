"""`incus-actors demo`: three members on this machine, real containers, a killed leader, told as it happens.

Owns the story and the clean-up; everything in it is done by real daemons through their REST API. Must never show
a number that was not measured in this very run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from incus_actors import __version__
from incus_actors.cli.demo_output import Story
from incus_actors.lab import debris, remote_exec
from incus_actors.lab.client import RequestFailedError, UnixClient
from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.failover import phases, role_journal
from incus_actors.lab.processes import LabMember
from incus_actors.lab.writers import Writer, first_accepted_after, lost_writes

INSTANCES = 6
MARKER = ".incus-actors-demo"  #: in a directory that the demo may delete


def free_ports(count: int, first: int = 8443) -> int:
    """Return the first of `count` ports in a row, from `first` on, on which nobody listens."""
    while not all(_is_free(port) for port in range(first, first + count)):
        first += 10
    return first


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class DemoFailedError(Exception):
    """A step did not do what it must."""


def _claim(directory: Path) -> None:
    """Make the state directory anew, after what an earlier demo left; refuse anybody else's directory."""
    marker = directory / MARKER
    if directory.exists() and any(directory.iterdir()) and not marker.exists():
        raise click.ClickException(f"{directory} is not empty and not a demo's: choose another --data")
    if directory.exists():
        debris.remove(directory)
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    marker.touch()


def chosen_driver(directory: Path) -> tuple[str, str]:
    """Return the instance driver that the daemons will use, and why."""
    from incus_actors.drivers.registry import choose_drivers

    drivers = choose_drivers(directory)
    found = drivers.reasons["lxc"]
    name = drivers.instances.info.name
    return name, "real containers through liblxc" if name == "lxc" else found.reason


@click.command()
@click.option("--keep", is_flag=True, help="Leave the cluster running and print how to go on with it.")
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path(".demo"), show_default=True, help="State directory."
)
@click.option(
    "--port", default=None, type=int, help="HTTPS port of the first member; the others follow. [default: free]"
)
@click.option("--fast", is_flag=True, help="No pauses for the reader.")
@click.option("--end", is_flag=True, help="End what --keep left running, and remove it.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON at the end, nothing else.")
def demo(keep: bool, data: Path, port: int | None, fast: bool, end: bool, as_json: bool) -> None:
    """Form a cluster of three on this machine, kill its leader, and prove that nothing was lost."""
    directory = data.absolute()
    story = Story(as_json=as_json, pause_s=0.0 if fast else 0.6)

    def interrupted(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    if end:
        _end(story, directory)
        story.end(0)
        return
    for number in (signal.SIGTERM, signal.SIGINT):  # SIGINT too: a shell's background job starts with it ignored
        signal.signal(number, interrupted)
    _claim(directory)
    cluster = LabCluster.on_loopback(3, directory, first_port=port or free_ports(3))
    code, kept = 1, False
    try:
        _tell(story, cluster)
        code, kept = 0, keep
    except KeyboardInterrupt as reason:
        story.failed(f"interrupted ({reason or 'Ctrl-C'})")
        code = 130
    except (DemoFailedError, RequestFailedError, RuntimeError, OSError, TimeoutError) as problem:
        story.failed(str(problem))
        for member in cluster.members:
            story.log(member.name, member.log_tail(15))
    finally:
        if kept:
            story.how_to_go_on(cluster)
        else:
            _clean_up(story, cluster, directory)
    story.end(code)
    sys.exit(code)


def _tell(story: Story, cluster: LabCluster) -> None:
    driver, reason = chosen_driver(cluster.members[0].directory)
    story.title(__version__, cluster, driver)
    _form(story, cluster)
    story.step(f"driver: {driver} ({reason})")
    _import_image(story, cluster)
    _launch(story, cluster)
    _exec_from_elsewhere(story, cluster)
    story.members(cluster.members[0].client.get("/1.0/cluster/members?recursion=1"))
    story.instances(cluster.members[0].client.get("/1.0/instances?recursion=2"))
    _kill_leader(story, cluster)


def _form(story: Story, cluster: LabCluster) -> None:
    begin = time.monotonic()
    for member in cluster.members:
        member.start()
    for member in cluster.members:
        member.wait_until_ready(30)
    story.step(f"{len(cluster.members)} daemons started", time.monotonic() - begin)
    first = cluster.members[0]
    took = cluster.bootstrap()
    story.step(f"{first.name}  bootstrapped      https://{first.https_address}", took)
    for member in cluster.members[1:]:
        took = cluster.join(member)
        story.step(f"{member.name}  joined with token https://{member.https_address}", took)
    cluster.wait_until_healthy(30)


def _import_image(story: Story, cluster: LabCluster) -> None:
    from incus_actors.drivers.tiny_image import TinyImage

    begin = time.monotonic()
    assert cluster.directory is not None
    image = TinyImage().write_unified(cluster.directory / "tiny.tar.gz")
    through = cluster.members[1]
    operation = through.client.upload("/1.0/images", image, {"X-Incus-filename": image.name})
    done = through.client.get(f"/1.0/operations/{operation['id']}/wait?timeout=60", timeout_s=65)
    if done["status_code"] != 200:
        raise DemoFailedError(f"image import: {done['err']}")
    fingerprint = done["metadata"]["fingerprint"]
    through.client.request("POST", "/1.0/images/aliases", {"name": "tiny", "target": fingerprint})
    story.step(f'image "tiny" built and imported through {through.name} ({fingerprint[:12]})', time.monotonic() - begin)


def _launch(story: Story, cluster: LabCluster) -> None:
    begin = time.monotonic()
    through = cluster.members[0]
    operations = []
    for number in range(1, INSTANCES + 1):
        body = {"name": f"web-{number}", "source": {"type": "image", "alias": "tiny"}, "start": True}
        operations.append(through.client.request("POST", "/1.0/instances", body))
        wait_for(
            lambda n=number: len(through.client.get("/1.0/instances")) >= n,  # type: ignore[misc]
            "the instance's row",
            timeout_s=20,
        )
    for operation in operations:
        done = through.client.get(f"/1.0/operations/{operation['id']}/wait?timeout=60", timeout_s=65)
        if done["status_code"] != 200:
            raise DemoFailedError(f"launch: {done['err']}")
    places: dict[str, int] = {}
    for row in through.client.get("/1.0/instances?recursion=1"):
        places[row["location"]] = places.get(row["location"], 0) + 1
    where = ", ".join(f"{name} {count}" for name, count in sorted(places.items()))
    story.step(f"{INSTANCES} instances started ({where})", time.monotonic() - begin)


def _exec_from_elsewhere(story: Story, cluster: LabCluster) -> None:
    instance = cluster.members[0].client.get("/1.0/instances/web-1")
    through = next(m for m in cluster.members if m.name != instance["location"])
    begin = time.monotonic()
    result = remote_exec.run(through.directory / "unix.socket", "web-1", ["sh", "-c", "hostname; uname -s"])
    if result.exit_code or not result.stdout:
        raise DemoFailedError(f"exec: exit code {result.exit_code}, {result.stderr.strip()}")
    said = " ".join(result.stdout.split())
    story.step(f"exec in web-1 (on {instance['location']}) through {through.name}: {said!r}", time.monotonic() - begin)


def _kill_leader(story: Story, cluster: LabCluster) -> None:
    victim = wait_for(cluster.leader, "a leader", timeout_s=10)
    survivors = [m for m in cluster.members if m is not victim]
    writers = [Writer(m, f"user.demo-{m.name}", timeout_s=10) for m in survivors]
    for writer in writers:
        writer.start()
    time.sleep(0.5)
    story.chapter(f"Now killing the leader, {victim.name} (kill -9), while {len(writers)} clients keep writing …")
    moment = victim.kill()
    wait_for(
        lambda: first_accepted_after([list(w.history) for w in writers], moment), "a write accepted again", timeout_s=30
    )
    time.sleep(0.5)
    histories = [w.finish() for w in writers]
    journal = role_journal(survivors)
    first = first_accepted_after(histories, moment)
    if first is None:
        raise DemoFailedError("no write was accepted after the leader's death")
    story.failover(victim.name, journal, moment, phases(journal, moment), (first - moment) / 1e6)
    _comes_back(story, cluster, victim)
    config = wait_for(lambda: survivors[0].client.get("/1.0")["config"], "the configuration", timeout_s=10)
    lost = lost_writes(histories, config)
    acknowledged = sum(a.acknowledged for h in histories for a in h)
    if lost:
        raise DemoFailedError(f"acknowledged writes were lost: {lost}")
    attempts = sum(len(h) for h in histories)
    story.verdict(acknowledged, attempts, (first - moment) / 1e6)


def _comes_back(story: Story, cluster: LabCluster, victim: LabMember) -> None:
    begin = time.monotonic()
    victim.start()
    victim.wait_until_ready(30)
    cluster.wait_until_healthy(30)
    rows = cluster.members[0].client.get("/1.0/instances?recursion=1")
    running = sum(row["status"] == "Running" for row in rows)
    story.step(
        f"{victim.name} is back, a follower; {running} of {INSTANCES} instances run (its own never stopped)",
        time.monotonic() - begin,
    )
    if running != INSTANCES:
        raise DemoFailedError(f"only {running} of {INSTANCES} instances run")


def _clean_up(story: Story, cluster: LabCluster, directory: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin = time.monotonic()
    _quietly(lambda: _delete_instances(cluster))
    for member in cluster.members:
        if member.running and member.process is not None:
            member.process.terminate()
    for member in cluster.members:
        _quietly(lambda m=member: m.stop(10))  # type: ignore[misc]
    forced = debris.remove(directory)
    story.cleaned(time.monotonic() - begin, forced)


def _end(story: Story, directory: Path) -> None:
    """Take away a demo that was kept, whoever of it still lives."""
    if not (directory / MARKER).exists():
        raise click.ClickException(f"there is no demo in {directory}")
    begin = time.monotonic()
    for path in sorted(directory.glob("*/unix.socket")):
        client = UnixClient(path)
        with contextlib.suppress(OSError, RequestFailedError, ValueError, TimeoutError):
            client.wait_until_ready(timeout_s=1)
            _delete_all(client)
            break
    for pid in debris.daemons_of(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    _quietly(lambda: wait_for(lambda: not debris.daemons_of(directory), "the end of the daemons", timeout_s=10))
    story.cleaned(time.monotonic() - begin, debris.remove(directory))


def _delete_instances(cluster: LabCluster) -> None:
    online = cluster.online()
    if online:
        _delete_all(online[0].client)


def _delete_all(client: UnixClient) -> None:
    names = [url.rsplit("/", 1)[1] for url in client.get("/1.0/instances", timeout_s=5)]
    for name in names:
        _quietly(lambda n=name: client.run("PUT", f"/1.0/instances/{n}/state", {"action": "stop", "force": True}))  # type: ignore[misc]
        _quietly(lambda n=name: client.run("DELETE", f"/1.0/instances/{n}"))  # type: ignore[misc]


def _quietly(action: Callable[[], Any]) -> None:
    """Clean-up goes on whatever one step says; what it leaves is found and told by debris.remove."""
    try:
        action()
    except (OSError, RequestFailedError, ValueError, RuntimeError, TimeoutError) as problem:
        if os.environ.get("INCUS_ACTORS_DEBUG"):
            click.echo(f"clean-up: {problem}", err=True)
