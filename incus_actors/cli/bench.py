"""`incus-actors bench`: front end to the benchmarks."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from incus_actors.lab.everyday import Row


@click.group()
def bench() -> None:
    """Measure this product, and real Incus beside it where it is installed."""


@bench.command()
@click.option("--rounds", default=20, show_default=True, help="Rounds of each way to break the leader.")
@click.option("--real-rounds", default=None, type=int, help="Rounds with real Incus [default: as --rounds; 0: none].")
@click.option("--members", default=3, show_default=True, help="Members of the cluster.")
@click.option(
    "--how",
    "hows",
    type=click.Choice(["kill", "cut", "stop"]),
    multiple=True,
    default=("kill", "cut", "stop"),
    show_default=True,
    help="SIGKILL, network cut, planned stop; may be given more than once.",
)
@click.option("--seed", default=1, show_default=True, help="Seed of the moments at which the leader is broken.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=None, help="Result file.")
@click.option("--plot", type=click.Path(path_type=Path), default=None, help="Draw a PNG (needs matplotlib).")
def failover(
    rounds: int,
    real_rounds: int | None,
    members: int,
    hows: tuple[str, ...],
    seed: int,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Break the leader again and again; how long until a write is accepted?"""
    if os.geteuid() != 0:
        raise click.ClickException("the failover benchmark makes network namespaces: run it as root")
    from incus_actors.lab.failover_benchmark import run

    default = Path("results") / f"failover-{time.strftime('%Y%m%d-%H%M%S')}.json"
    sys.exit(
        run(
            rounds=rounds,
            real_rounds=rounds if real_rounds is None else real_rounds,
            hows=hows,
            members=members,
            seed=seed,
            json_file=json_file or default,
            plot=plot,
        )
    )


@bench.command()
@click.option("--writes", default=300, show_default=True, help="Requests for each request row.")
@click.option("--launches", default=5, show_default=True, help="Containers for each instance row.")
@click.option("--idle", "idle_s", default=20.0, show_default=True, help="Seconds of idleness to measure.")
@click.option("--busy", "busy_s", default=0.0, show_default=True, help="Seconds beside busy loops to count elections.")
@click.option("--real/--no-real", default=True, help="Measure real Incus too, where it is installed.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=None, help="Result file.")
def everyday(writes: int, launches: int, idle_s: float, busy_s: float, real: bool, json_file: Path | None) -> None:
    """Writes, lists, launches, exec, memory, idle CPU: the rows of the budget table."""
    if os.geteuid() != 0:
        raise click.ClickException("the benchmark makes network namespaces and containers: run it as root")
    from incus_actors.lab.everyday import Everyday, elections_while_busy
    from incus_actors.lab.failover_benchmark import real_incus_missing

    def measure(product: str) -> Everyday:
        return Everyday(product, writes=writes, launches=launches, idle_s=idle_s, say=_say)

    rows = measure("incus_actors").run()
    missing = real_incus_missing() if real else "asked not to"
    if not missing:
        rows += measure("Incus").run()
    if busy_s:
        rows.append(elections_while_busy("incus_actors", busy_s, _say))
    _report("everyday", rows, missing, json_file)


@bench.command()
@click.option("--real/--no-real", default=True, help="Measure real Incus too, where it is installed.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=None, help="Result file.")
def forming(real: bool, json_file: Path | None) -> None:
    """Joins one by one, at once and from preseeds; a look at a cluster of which a part is gone."""
    if os.geteuid() != 0:
        raise click.ClickException("the benchmark makes network namespaces: run it as root")
    from incus_actors.lab.failover_benchmark import real_incus_missing
    from incus_actors.lab.forming import Forming

    rows = Forming("incus_actors", say=_say).run()
    missing = real_incus_missing() if real else "asked not to"
    if not missing:
        rows += Forming("Incus", say=_say).run()
    _report("forming", rows, missing, json_file)


@bench.command()
@click.option("--rounds", default=5, show_default=True, help="How often each thing is made.")
@click.option("--real/--no-real", default=True, help="Measure real Incus too, where it is installed.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=None, help="Result file.")
def storage(rounds: int, real: bool, json_file: Path | None) -> None:
    """Pools and networks over three members, launches from a cached image on btrfs, long lists of volumes."""
    if os.geteuid() != 0:
        raise click.ClickException("the benchmark makes network namespaces and pools: run it as root")
    from incus_actors.lab.failover_benchmark import real_incus_missing
    from incus_actors.lab.storage_bench import StorageBench

    rows = StorageBench("incus_actors", rounds=rounds, say=_say).run()
    missing = real_incus_missing() if real else "asked not to"
    if not missing:
        rows += StorageBench("Incus", rounds=rounds, say=_say).run()
    _report("storage", rows, missing, json_file)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _report(name: str, rows: list[Row], not_measured: str, json_file: Path | None) -> None:
    from dataclasses import asdict

    from incus_actors.lab.report import show_rows, write_json

    show_rows(rows, not_measured=not_measured)
    target = json_file or Path("results") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    write_json(target, {"rows": [asdict(row) for row in rows], "real_incus": not_measured or "measured"})
    _say(f"results: {target}")
