"""`incus-actors interaction`: run interaction scripts over the consensus core (docs/interaction.md)."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--quiet", "-q", is_flag=True, help="Show only what fails, and the sum.")
@click.option("--commands", is_flag=True, help="List the commands of the format and how each is written.")
def interaction(files: tuple[Path, ...], *, quiet: bool, commands: bool) -> None:
    """Run scripts (files, or directories of *.txt) over the consensus core: pass, or the line that failed.

    The format is described in docs/interaction.md. Exit code 1 when any script fails.
    """
    from incus_actors.interaction.commands import GRAMMAR
    from incus_actors.interaction.runner import run_file

    if commands:
        for verb in sorted(GRAMMAR.usages):
            click.echo(GRAMMAR.usages[verb])
        return
    if not files:
        raise click.UsageError("name at least one file or directory of scripts")
    paths = [found for path in files for found in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])]
    failed = 0
    for path in paths:
        outcome = run_file(path)
        failed += not outcome.passed
        if quiet and outcome.passed:
            continue
        for line in outcome.notes:
            click.echo(f"      {line}")
        for line in outcome.report():
            click.echo(line)
    if len(paths) != 1 or quiet:
        click.echo(f"{len(paths) - failed} of {len(paths)} passed")
    sys.exit(1 if failed or not paths else 0)
