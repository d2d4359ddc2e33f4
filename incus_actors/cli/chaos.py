"""`incus-actors chaos`: real daemons under a seeded nemesis, and the verdict (`tox -e chaos`).

Owns the command line and the judgement of what lab/chaos.py collected: linearizability by simulation/linearizability.py,
lost writes, health at the end.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from incus_actors.lab.chaos import ChaosResult, run_chaos
from incus_actors.lab.registers import UNKNOWN_NS, Operation
from incus_actors.lab.schedule import WEIGHTS
from incus_actors.simulation.linearizability import FOREVER, Call, TooHardError, is_linearizable


@click.command()
@click.option(
    "--seconds",
    default=600.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="How long faults go on.",
)
@click.option("--seed", type=int, default=None, help="Draw the faults from this [default: a new one, printed].")
@click.option("--members", default=5, show_default=True, type=click.IntRange(3, 9), help="Size of the cluster.")
@click.option(
    "--clients", default=6, show_default=True, type=click.IntRange(min=1), help="Clients that read and write."
)
@click.option(
    "--only",
    type=click.Choice([kind.__name__ for kind in WEIGHTS]),
    multiple=True,
    metavar="FAULT",
    help="Only this kind of fault [several times; default: all].",
)
@click.option("--keep", type=click.Path(path_type=Path), default=Path(".chaos"), help="Where logs of failures go.")
def chaos(seconds: float, seed: int | None, members: int, clients: int, only: tuple[str, ...], keep: Path) -> None:
    """Kill, pause, cut, partition, fill and remove the members of a real cluster; prove that nothing was lost.

    Needs root. Exit status 1 if an acknowledged write is missing, a history is not linearizable, or the cluster is not
    healthy at the end.
    """
    if os.geteuid() != 0:
        raise click.ClickException("network namespaces and mounts need root")
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    click.echo(f"seed {seed}: {members} members, {seconds:g} s of faults")
    place = keep / str(seed)
    kinds = [kind for kind in WEIGHTS if not only or kind.__name__ in only]
    result = run_chaos(
        seconds, seed=seed, members=members, clients=clients, say=click.echo, keep_logs=place, only=kinds
    )
    problems = judge(result)
    click.echo(summary(result))
    for problem in problems:
        click.echo(f"  WRONG: {problem}")
    if problems:
        place.mkdir(parents=True, exist_ok=True)
        history = "\n".join(json.dumps(asdict(operation)) for operation in result.operations)
        (place / "history.jsonl").write_text(history + "\n")
        (place / "faults.txt").write_text("\n".join(result.faults) + "\n")
        click.echo(f"FAILED with seed {seed}; history and logs are in {place}")
        sys.exit(1)
    click.echo("Verdict: every history is linearizable, no acknowledged write is lost, the cluster is healthy.")


def judge(result: ChaosResult) -> list[str]:
    """Return everything that is wrong with a run, nothing if it is good."""
    problems = list(result.problems)
    problems += [f"lost: {lost.key} was acknowledged at {lost.acknowledged}, is {lost.found}" for lost in result.lost]
    by_register: dict[str, list[Operation]] = {}
    for operation in result.operations:
        by_register.setdefault(operation.register, []).append(operation)
    for name, operations in sorted(by_register.items()):
        try:
            if not is_linearizable(calls(operations)):
                problems.append(f"{name} is not linearizable ({len(operations)} operations)")
        except TooHardError as error:
            problems.append(f"{name} could not be judged: {error}")
    if not any(attempt.acknowledged for history in result.attempts for attempt in history):
        problems.append("nothing was written: the run shows nothing")
    return problems


def calls(operations: Sequence[Operation]) -> list[Call]:
    """Return operations as the checker takes them."""
    made = []
    for operation in operations:
        end_us = FOREVER if operation.end_ns == UNKNOWN_NS else operation.end_ns // 1000
        value = (operation.expected, operation.value) if operation.kind == "cas" else operation.value
        made.append(
            Call(operation.register, operation.kind, operation.start_ns // 1000, end_us, value, operation.result)
        )
    return made


def summary(result: ChaosResult) -> str:
    """Return what was done, in a few lines."""
    kinds = Counter(operation.kind for operation in result.operations)
    unknown = sum(operation.end_ns == UNKNOWN_NS for operation in result.operations)
    attempts = [attempt for history in result.attempts for attempt in history]
    accepted = sum(attempt.acknowledged for attempt in attempts)
    return (
        f"{len(result.faults)} faults; registers: {', '.join(f'{n} {kind}s' for kind, n in sorted(kinds.items()))}, "
        f"{unknown} of them with an unknown outcome, {sum(result.failures.values())} failed calls; counters: "
        f"{accepted} of {len(attempts)} writes acknowledged, {len(result.lost)} lost; healthy "
        f"{result.healthy_after_s:.1f} s after the last fault"
    )
