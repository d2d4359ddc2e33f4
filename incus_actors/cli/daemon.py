"""`incus-actorsd`: the daemon's command line, as `incusd` has it.

Owns flags and exit codes; hands over to the daemon package, or to a subcommand (`cluster`, `admin cluster`). Must never
import more than it needs: most starts run no subcommand.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from incus_actors import __version__
from incus_actors.memory import keep_small
from incus_actors.settings import DEFAULT_MIN_FREE_MIB, DirectoryInUseError, Settings, incus_directory, lock_directory


class Subcommands(click.Group):
    """Imports a subcommand only when it is asked for: a fast start of the daemon."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        return ["admin", "cluster"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, importing its module."""
        if cmd_name not in self.list_commands(ctx):
            return None
        from incus_actors.cli import admin_cluster

        return admin_cluster.admin if cmd_name == "admin" else admin_cluster.cluster


@click.group(cls=Subcommands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--group", metavar="NAME", help="The group of users that will be allowed to talk to the daemon")
@click.option("--logfile", type=click.Path(path_type=Path), metavar="FILE", help="Path to the log file")
@click.option("-d", "--debug", is_flag=True, help="Show all debug messages")
@click.option("-v", "--verbose", is_flag=True, help="Show all information messages")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default=None,
    help="Log lines for people or for machines (default: text on a terminal, json elsewhere)",
)
@click.option("--discoverable", is_flag=True, help="Wait to be found and joined to a cluster, unless in one already")
@click.option(
    "--min-free",
    "min_free_mib",
    type=click.IntRange(min=0),
    default=DEFAULT_MIN_FREE_MIB,
    envvar="INCUS_ACTORS_MIN_FREE_MIB",
    show_envvar=True,
    show_default=True,
    metavar="MIB",
    help="With less free space than this the database takes only what makes room",
)
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def main(
    context: click.Context,
    group: str | None,
    logfile: Path | None,
    debug: bool,
    verbose: bool,
    log_format: str | None,
    discoverable: bool,
    min_free_mib: int,
) -> None:
    """Run the incus_actors daemon in the foreground (state in $INCUS_DIR, default /var/lib/incus-actors)."""
    if context.invoked_subcommand is not None:
        return
    settings = Settings(
        directory=incus_directory(),
        group=group,
        logfile=logfile,
        debug=debug,
        verbose=verbose,
        log_format=log_format or ("text" if sys.stderr.isatty() and logfile is None else "json"),
        discoverable=discoverable,
        min_free_mib=min_free_mib,
        instance_driver=os.environ.get("INCUS_ACTORS_DRIVER", "auto"),
    )
    try:
        lock = lock_directory(settings.directory)
    except (DirectoryInUseError, OSError) as problem:
        raise click.ClickException(str(problem)) from None
    keep_small()  # before the first thread
    from incus_actors.daemon import START_ANEW, run  # heavy: only once we know that we may run

    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    try:
        code = run(settings, log_level=level)
    finally:
        os.close(lock)
    if code == START_ANEW:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves, as we were started
    sys.exit(code)


if __name__ == "__main__":
    main()
