"""`incus-actors simulate`: the consensus core under seeded chaos, as many seeds as wanted, or one with its trace.

Owns the command line of the simulator (docs/simulation.md); the work is simulation/runner.py's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from incus_actors.consensus.history_file import HistoryError, read_history
from incus_actors.simulation.plan import DEFAULT_CHAOS_MS, Plan, draw_plan
from incus_actors.simulation.replay import beginning, line, replay
from incus_actors.simulation.runner import Failure, Report, make_world, play, run_plan, run_seeds, shrink


@click.command()
@click.option("--seeds", default=100, show_default=True, type=click.IntRange(min=1), help="How many seeds to run.")
@click.option("--first", default=0, show_default=True, type=click.IntRange(min=0), help="The first of them.")
@click.option("--seed", type=click.IntRange(min=0), default=None, help="Run only this one.")
@click.option("--trace", is_flag=True, help="With --seed: print what happened.")
@click.option("--messages", is_flag=True, help="With --seed: print every message received as well.")
@click.option("--jobs", default=0, type=click.IntRange(min=0), help="Processes [default: one per core].")
@click.option(
    "--length",
    "chaos_ms",
    default=DEFAULT_CHAOS_MS,
    show_default=True,
    type=click.IntRange(min=1),
    help="Chaos per seed, in virtual ms.",
)
@click.option(
    "--shrink/--no-shrink", "shrinks", default=True, show_default=True, help="Find the fewest strikes that fail."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=None, help="Write the report here.")
@click.option(
    "--history",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None,
    help="Instead: step what a member wrote down when it stopped (database/consensus-history.msgpack).",
)
@click.option("--quiet-steps", is_flag=True, help="With --history: also steps in which nothing happened.")
def simulate(
    seeds: int,
    first: int,
    seed: int | None,
    trace: bool,
    messages: bool,
    jobs: int,
    chaos_ms: int,
    shrinks: bool,
    json_file: Path | None,
    history: Path | None,
    quiet_steps: bool,
) -> None:
    """Run the consensus core against virtual networks, disks and clocks that fail; say which promises break.

    A seed decides everything: the same seed and length give the same run, on every machine. Exit status 1 if any
    property was violated.
    """
    if (trace or messages) and seed is None:
        raise click.UsageError("--trace and --messages show one run: --seed says which")
    if json_file is not None:
        if seed is not None or history is not None:
            raise click.UsageError("--json is the report of many seeds; of one: --first S --seeds 1 --json FILE")
        _must_be_writable(json_file)
    if history is not None:
        sys.exit(_replay(history, quiet_steps=quiet_steps))
    if seed is not None:
        plan = draw_plan(seed, chaos_ms=chaos_ms)
        found = _show(plan, trace=trace, messages=messages)
        if found is not None and shrinks:
            _shrink(plan)
        sys.exit(found is not None)
    report = run_seeds(first, seeds, jobs=jobs, chaos_ms=chaos_ms, progress=_progress(seeds))
    if sys.stderr.isatty():
        click.echo(err=True)
    _print(report)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(report), indent=2) + "\n")
    if shrinks:
        for result in report.failures[:3]:
            if result.failure is not None and result.failure.name != "P-DETERMINISM":
                _shrink(draw_plan(result.seed, chaos_ms=chaos_ms))
    sys.exit(bool(report.failures))


def _must_be_writable(path: Path) -> None:
    """Hours of seeds are not run for a report that can't be written."""
    try:
        path.open("a").close()
    except OSError as error:
        raise click.ClickException(f"{path} can't be written: {error.strerror}") from None


def _replay(path: Path, *, quiet_steps: bool) -> bool:
    """Print what a core does with a history; return whether it failed."""
    try:
        content = read_history(path)
    except (HistoryError, OSError) as error:
        raise click.ClickException(str(error)) from None
    try:
        click.echo(f"stopped: {content.reason}")
        if content.mark is not None:
            click.echo(beginning(content.mark))
        since_ms = content.events[0].now_ms if content.events else 0
        steps, hidden, failed = 0, 0, False
        for step in replay(content):
            steps, failed = steps + 1, bool(step.broken)
            if step.effects or step.broken or quiet_steps:
                click.echo(line(step, since_ms))
            else:
                hidden += 1
    except HistoryError as error:
        raise click.ClickException(f"{path}: {error}") from None
    click.echo(f"{steps} events" + (f", {hidden} of them without an effect are not shown" if hidden else ""))
    return failed


def _show(plan: Plan, *, trace: bool, messages: bool) -> Failure | None:
    if not (trace or messages):
        result = run_plan(plan)
        click.echo(
            f"seed {plan.seed}: {result.failure.text if result.failure else 'every property holds'} "
            f"({result.steps} steps, {result.answered} of {result.operations} operations answered, "
            f"{result.elections} elections, {result.strikes} strikes, {result.virtual_us / 1e6:.1f} s of virtual time)"
        )
        return result.failure
    click.echo(f"seed {plan.seed}: {plan.voters} voters, {plan.standbys} standbys, {plan.spares} spares")
    for text in (plan.network, plan.disk, plan.limits):
        click.echo(f"  {text}")
    world = make_world(plan, trace=trace, verbose=messages)
    failure, _ = play(world)
    for note in world.notes:
        click.echo(str(note))
    click.echo(failure.text if failure else "every property holds")
    return failure


def _progress(count: int) -> Callable[[Report], None]:
    def show(report: Report) -> None:
        if sys.stderr.isatty():
            text = f"\r{report.seeds} of {count} seeds, {report.seconds:.0f} s, {len(report.failures)} failures"
            click.echo(text, nl=False, err=True)

    return show


def _print(report: Report) -> None:
    click.echo(
        f"{report.seeds} seeds from {report.first} in {report.seconds:.1f} s: {report.steps} steps, "
        f"{report.messages} messages, {report.virtual_s / 3600:.1f} h of virtual time, {report.elections} elections, "
        f"{report.strikes} strikes, {report.answered} of {report.operations} operations answered, "
        f"{report.twice} seeds run twice, {len(report.undecided)} histories too hard to judge"
    )
    for result in report.failures:
        if result.failure is not None:
            click.echo(f"FAILED seed {result.seed}: {result.failure.text}")
    click.echo("every property holds" if not report.failures else f"{len(report.failures)} seeds failed")


def _shrink(plan: Plan) -> None:
    smaller, failure = shrink(plan)
    click.echo(f"seed {plan.seed}, {len(smaller.events)} of {len(plan.events)} strikes are enough: {failure.text}")
    for event in smaller.events:
        click.echo(f"  {event}")
