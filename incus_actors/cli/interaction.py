"""`incus-actors interaction`: run interaction scripts over the consensus core (docs/interaction.md)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

STDIN = Path("-")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--quiet", "-q", is_flag=True, help="Show only what fails, and the sum.")
@click.option("--commands", is_flag=True, help="List the commands of the format and how each is written.")
def interaction(files: tuple[Path, ...], *, quiet: bool, commands: bool) -> None:
    """Run scripts (files, directories of *.txt, or - for standard input) over the consensus core: pass, or the line
    that failed.

    The format is described in docs/interaction.md. Exit code 1 when any script fails.
    """
    from incus_actors.interaction.commands import GRAMMAR
    from incus_actors.interaction.runner import Outcome, run_bytes, run_file
    from incus_actors.interaction.script import MOST_BYTES

    if commands:
        for verb in sorted(GRAMMAR.usages):
            click.echo(GRAMMAR.usages[verb])
        return
    if not files:
        raise click.UsageError("name at least one file or directory of scripts")

    def outcomes() -> Iterator[Outcome]:
        for path in files:
            if path == STDIN:
                yield run_bytes(sys.stdin.buffer.read(MOST_BYTES + 1), "<stdin>")
            elif path.is_dir():
                found = sorted(each for each in path.rglob("*.txt") if not each.is_dir())
                yield from map(run_file, found)
                if not found:
                    yield Outcome(str(path), passed=False, error=True, text="no *.txt in this directory")
            else:
                yield run_file(path)

    total = failed = 0
    for outcome in outcomes():
        total += 1
        failed += not outcome.passed
        if quiet and outcome.passed:
            continue
        for line in outcome.notes:
            click.echo(f"      {line}")
        for line in outcome.report():
            click.echo(line)
    if total != 1 or quiet:
        click.echo(f"{total - failed} of {total} passed")
    sys.exit(1 if failed else 0)
