"""`incus-actors actors`, `incus-actors raft status` and `raft check`: look into a running daemon.

Asks /internal/* over the unix socket of $INCUS_DIR; owns the presentation only.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from incus_actors.lab.client import RequestFailedError, UnixClient
from incus_actors.settings import incus_directory
from incus_actors.transport.address import control_address


def fetch(path: str, method: str = "GET") -> Any:
    """Return the metadata of an answer, or end with what to do."""
    socket = incus_directory() / "unix.socket"
    try:
        return UnixClient(socket).request(method, path, timeout_s=15)
    except OSError as problem:
        raise click.ClickException(
            f"no daemon answers at {socket} ({problem}); set INCUS_DIR to its directory, or start incus-actorsd"
        ) from None
    except RequestFailedError as problem:
        raise click.ClickException(str(problem)) from None


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The rows as JSON.")
def actors(as_json: bool) -> None:
    """Print the live supervision tree with restarts and mailbox high-water marks."""
    rows: list[dict[str, Any]] = fetch("/internal/actors")
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    root = Tree("[bold]actors[/]  (mailbox now / most ever / limit, restarts)")
    nodes: dict[str, Tree] = {}
    for row in rows:
        path = str(row["path"])
        parent = nodes.get(path.rpartition("/")[0], root)
        nodes[path] = parent.add(_actor_line(row), highlight=False)
    Console(highlight=False).print(root)


def _actor_line(row: dict[str, Any]) -> str:
    name = str(row["path"]).rpartition("/")[2]
    restarts = f" [red]{row['restarts']} restarts[/]" if row.get("restarts") else ""
    state = "" if row.get("state") in (None, "running") else f" [yellow]{row['state']}[/]"
    mailbox = f"{row['mailbox']}/{row['high_water']}/{row['mailbox_limit']}"
    return f"[bold]{name}[/] [cyan]{row['kind']}[/] {mailbox}{restarts}{state}"


@click.group()
def raft() -> None:
    """Consensus as this member sees it."""


@raft.command()
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option("--target", metavar="MEMBER", help="As this member sees it.")
def status(as_json: bool, target: str | None) -> None:
    """Print term, role, indexes, members, elections and latencies.

    How far each member is, only the leader is told.
    """
    answer: dict[str, Any] = fetch(f"/internal/raft?target={quote(target)}" if target else "/internal/raft")
    if as_json:
        click.echo(json.dumps(answer, indent=1))
        return
    facts, names = answer["status"], answer["names"]
    console = Console(highlight=False)
    leader = facts["leader"]
    console.print(
        f"member {facts['member_id']}  [bold]{facts['role']}[/] in term {facts['term']}, leader "
        f"{leader or 'unknown'}   cluster {facts['cluster_id']}, epoch {facts['epoch']}",
        soft_wrap=True,
    )
    console.print(
        f"log {facts['first']}–{facts['last']}   durable {facts['durable']}   committed {facts['commit']}   "
        f"applied {facts['applied']}   loop late {facts['loop_late_ms']:.1f} ms   free disk {_space(facts['free_kib'])}   "
        f"fast elections {facts['fast_path_spent']} of {facts['fast_path_budget']} a minute   {_sqlite(facts)}   "
        f"{_features(facts)}",
        soft_wrap=True,
    )
    for trouble in _troubles(facts, names):
        console.print(trouble, style="red", markup=False, soft_wrap=True)
    print_whole(console, _members_table(facts, names))
    if leader not in (0, facts["member_id"]):
        console.print(f"How far each member is, the leader knows: --target {names.get(str(leader)) or leader}")
    _print_numbers(console, facts)
    _print_lanes(console, answer["transport"])
    for row in answer["journal"][-8:]:
        console.print(f"  term {row['term']}: {row['role']}, leader {row['leader'] or 'none'} ({row['cause']})")


@raft.command()
def check() -> None:
    """Let all members compare their whole databases now; they do so once a day by themselves."""
    found = fetch("/internal/raft/check", "POST")
    click.echo(f"at entry {found['index']} the database here is {found['hash']}")
    click.echo("a member whose database differs from the majority's there leaves, and is installed again by itself")


def print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as it is: like Incus' tables, on a narrow terminal it is wrapped by the terminal."""
    wanted = console.measure(table, options=console.options.update(max_width=1000)).maximum
    Console(file=console.file, highlight=False, width=max(console.width, wanted)).print(table)


def _members_table(facts: dict[str, Any], names: dict[str, str]) -> Table:
    table = Table(box=box.ASCII)
    for heading in ("ID", "NAME", "ROLE", "ADDRESS", "DOMAIN", "MATCH", "LAG", "STATE", "LAST CONTACT", "RTT", "LINK"):
        table.add_column(heading)
    table.add_column("IN FLIGHT")
    table.add_column("FREE DISK")
    peers = {peer["id"]: peer for peer in facts["peers"]}
    configuration = facts["configuration"]
    for member in configuration["new"] or configuration["old"]:
        peer = peers.get(member["id"])
        mine = member["id"] == facts["member_id"]
        told = peer if peer and peer["state"] != "unknown" else None  # only a leader is told where the others are
        table.add_row(
            f"{member['id']}{' *' if mine else ''}",
            names.get(str(member["id"])) or "",
            member["role"],
            control_address(str(member["address"])),
            member["domain"],
            str(facts["last"]) if mine else str(told["match"]) if told else "",
            str(told["lag"]) if told else "",
            told["state"] if told else "",
            f"{told['last_contact_ms']} ms" if told else "",
            f"{told['round_trip_ms']:.1f} ms" if told else "",
            ("up" if peer["link"] else "down") if peer else "",
            str(told["in_flight"]) if told else "",
            _space(facts["free_kib"]) if mine else _space(told["free_kib"]) if told else "",
        )
    return table


def _troubles(facts: dict[str, Any], names: dict[str, str]) -> list[str]:
    """Return what keeps this member from taking part."""
    found = [facts["halted"]] if facts["halted"] else []
    if facts["refused_by"]:
        others = ", ".join(names.get(str(member)) or f"member {member}" for member in facts["refused_by"])
        found.append(f"Not a member any more, according to {others}")
    if facts["disk_full"]:
        found.append("The disk of its database is full")
    return found


def _space(kib: int) -> str:
    """Return free space for people; -1: nobody has looked yet."""
    if kib < 0:
        return "unknown"
    return f"{kib / (1 << 20):.1f} GiB" if kib >= 1 << 20 else f"{kib / (1 << 10):.0f} MiB"


def _sqlite(facts: dict[str, Any]) -> str:
    """Return which SQLite this member has, and who has another one."""
    own = facts["sqlite_version"]
    others = {peer["id"]: peer["sqlite_version"] for peer in facts["peers"] if peer["sqlite_version"]}
    different = [f"member {member} has {version}" for member, version in sorted(others.items()) if version != own]
    return "; ".join((f"sqlite {own}", *different))


def _features(facts: dict[str, Any]) -> str:
    """Return which feature level the cluster uses, and for whom what is newer waits."""
    if "feature_level" not in facts:
        return "no feature levels (an older release)"
    level = facts["feature_level"]
    known = {facts["member_id"]: facts["features"]} | {peer["id"]: peer["features"] for peer in facts["peers"]}
    newest = max(known.values())
    if newest <= level:
        return f"feature level {level}"
    waiting = [
        f"member {member} {'has not said its own' if found < 0 else f'knows {found}'}"
        for member, found in sorted(known.items())
        if found < newest
    ]
    return f"feature level {level}, {newest} waits ({'; '.join(waiting) or 'it will be switched on'})"


def _number(name: str, key: str, value: float) -> str:
    """Return one of a measurement's numbers; how many there are, and how many writes a batch has, are no times."""
    if key == "count":
        return f"count {value:.0f}"
    return f"{key} {value:.0f}" if name == "log_batch" else f"{key} {value:.2f} ms"


def _print_numbers(console: Console, facts: dict[str, Any]) -> None:
    for name, values in sorted(facts["latency_ms"].items()):
        console.print(f"  {name}: " + (", ".join(_number(name, k, v) for k, v in values.items()) or "none yet"))
    depths = ", ".join(f"{k} {v}" for k, v in sorted(facts["queue_depths"].items()))
    console.print(f"  queues: {depths or 'empty'}")
    for name, value in sorted(facts["counters"].items()):
        console.print(f"  {name}: {value}")


def _print_lanes(console: Console, lanes: dict[str, dict[str, int]]) -> None:
    """One line for each lane: what went through it, and what it refused."""
    for lane, counters in sorted(lanes.items()):
        told = ", ".join(f"{name} {value}" for name, value in sorted(counters.items()))
        console.print(f"  {lane} lane: {told or 'nothing yet'}", soft_wrap=True)
