"""`incus-actorsd cluster …` and `incus-actorsd admin cluster …`: inspect and recover a cluster (CONTRACT 17).

Owns the questions and the words, which are those of `incusd cluster`; consensus/recovery.py does the work. Must never
change a database while a daemon runs on it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from incus_actors.cli import cluster_document as document
from incus_actors.cli.tables import FORMATS, render_table
from incus_actors.consensus import recovery
from incus_actors.consensus.log_files import LogError, LogLockedError
from incus_actors.consensus.types import Member, Role
from incus_actors.settings import incus_directory

RUNNING = "The daemon is running, please stop it first."

RECOVER_WARNING = """\
You should run this command only if you are *absolutely* certain that this is
the only database node left in your cluster AND that other database nodes will
never come back (i.e. their daemon won't ever be started again).

This will make this server the only member of the cluster, and it won't
be possible to perform operations on former cluster members anymore.

However all information about former cluster members will be preserved in the
database, so you can possibly inspect it for further recovery.

You'll be able to permanently delete from the database all information about
former cluster members by running "incus cluster remove <member-name> --force".

See https://linuxcontainers.org/incus/docs/main/howto/cluster_recover/#recover-from-quorum-loss for more info.
"""

EDITORS = ("editor", "vi", "emacs", "nano")
EDIT_HEADER = """\
# Roles (voter, stand-by, spare) and addresses can be changed here. Stop every member before,
# and make the same change on each of them.
"""

REMOVE_WARNING = """\
You should run this command only if you ended up in an
inconsistent state where a node has been uncleanly removed (i.e. it doesn't show
up in "incus cluster list" but it's still in the raft configuration).
"""

REJOIN_WARNING = """\
This server will give up its present database and go on as a member of the cluster
that the other members form now. Its instances, volumes and images stay, as far as
that cluster knows them; what only this database knows is lost to the cluster.

The present database is kept aside, next to the new one.
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cluster() -> None:
    """Low level administration tools for inspecting and recovering clusters."""


def _database() -> Path:
    return incus_directory() / "database"


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say what went wrong in one line."""
    try:
        yield
    except LogLockedError:
        raise click.ClickException(RUNNING) from None
    except (LogError, document.DocumentError, OSError) as problem:
        raise click.ClickException(str(problem)) from None


def _is_running() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(incus_directory() / "unix.socket"))
        except OSError:
            return False
    return True


def _must_be_stopped() -> None:
    if _is_running():
        raise click.ClickException(RUNNING)


def _confirm(warning: str, what: str) -> None:
    click.echo(warning)
    click.echo("Do you want to proceed? (yes/no): ", nl=False)
    if sys.stdin.readline().removesuffix("\n").lower() != "yes":  # nothing shorter, as in Incus
        raise click.ClickException(f"{what} operation aborted")


def _rows() -> tuple[recovery.Overview, list[document.Row]]:
    found = recovery.overview(_database())
    names = recovery.member_rows(found.state_path)
    return found, document.rows_of(found.configuration.target, names)


@cluster.command("list-database")
@click.option(
    "-f",
    "--format",
    "form",
    default="table",
    metavar="FORMAT",
    help=f'Format ({"|".join(FORMATS)}), use suffix ",noheader" to disable headers and ",header" to enable it if missing, '
    "e.g. csv,header",
)
def list_database(form: str) -> None:
    """Print the addresses of the cluster members serving the database.

    Those are the voters. All members: `cluster show`.
    """
    with _told():
        _, rows = _rows()
        voters = [(row.address,) for row in rows if row.role == document.ROLES[Role.VOTER]]
        try:
            click.echo(render_table(("ADDRESS",), voters, form), nl=False)
        except ValueError as problem:
            raise click.ClickException(str(problem)) from None


@cluster.command("ls", hidden=True)
@click.option("-f", "--format", "form", default="table")
@click.pass_context
def ls(context: click.Context, form: str) -> None:
    """Like list-database."""
    context.invoke(list_database, form=form)


@cluster.command()
def show() -> None:
    """Show cluster configuration as YAML."""
    with _told():
        found, rows = _rows()
    click.echo(f"# Latest dqlite segment ID: {found.last_index}")
    click.echo(f"# That is the last entry of the log: {_end_of_log(found)}")
    if found.damage:
        click.echo(f"# This server has forgotten writes that it had acknowledged: {found.damage}")
    click.echo()
    click.echo(document.render(rows), nl=False)


def _end_of_log(found: recovery.Overview) -> str:
    return (
        f"{found.last_index} (term {found.last_term}), committed at least up to {found.commit}, "
        f"epoch {found.epoch}, term {found.term}"
    )


@cluster.command()
def edit() -> None:
    """Edit cluster configuration as YAML.

    Roles and addresses can be changed. Stop all members, make the same change on each of them, start them.
    """
    _must_be_stopped()
    with _told():
        found, before = _rows()
        if not _is_clustered():
            raise click.ClickException(
                "Can't edit cluster configuration as server isn't clustered (missing \"cluster.https_address\" config)"
            )
        members = found.configuration.target
        if sys.stdin.isatty():
            after, target = _in_editor(f"# Latest dqlite segment ID: {found.last_index}\n", members, before)
        else:
            after, target = _checked(sys.stdin.read(), members, before)
        if after == before:
            return
        own = next((member for member in target if member.id == found.member_id), None)
        if own is not None:
            _move_lanes(own.address)
        done = recovery.reconfigure(_database(), target, document.renames(before, after))
    click.echo(
        f"The cluster goes on in epoch {done.epoch}. Make the same change on every other member before it is started "
        f"again. A copy of the database as it was: {done.backup}"
    )


def _checked(
    text: str, members: tuple[Member, ...], before: list[document.Row]
) -> tuple[list[document.Row], tuple[Member, ...]]:
    """Return what a document asks for. Raises DocumentError."""
    after = document.parse(text)
    document.check_edit(before, after)
    after = [replace(new, name=old.name) for old, new in zip(before, after, strict=True)]
    return after, document.edited_members(members, before, after)


def _in_editor(
    comment: str, members: tuple[Member, ...], before: list[document.Row]
) -> tuple[list[document.Row], tuple[Member, ...]]:
    """Let the operator write it, again as long as it can't be done: what was typed is not lost."""
    text = f"{comment}{EDIT_HEADER}\n{document.render(before)}"
    while True:
        text = _edited(text)
        try:
            return _checked(text, members, before)
        except document.DocumentError as problem:
            click.echo(f"Config validation error: {problem}", err=True)
            click.echo("Press enter to open the editor again or ctrl+c to abort change")
            if not sys.stdin.readline():
                raise


def _edited(text: str) -> str:
    """Return what an editor makes of a text."""
    found = (shutil.which(name) for name in EDITORS)
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(None, found), None)
    if not named:
        raise click.ClickException("No text editor found, please set the EDITOR environment variable")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        file.write(text)
    path = Path(file.name)
    try:
        subprocess.run([*shlex.split(named), str(path)], check=True)
        return path.read_text()
    except (OSError, subprocess.CalledProcessError) as problem:
        raise click.ClickException(f"The editor failed: {problem}") from None
    finally:
        path.unlink()


def _is_clustered() -> bool:
    return (incus_directory() / "cluster.crt").exists()


def _move_lanes(address: str) -> None:
    """Listen on the new host at the next start."""
    from incus_actors.transport.lanes import Lanes

    Lanes(incus_directory()).move(address)


@cluster.command("recover-from-quorum-loss")
@click.option("-q", "--quiet", is_flag=True, help="Don't require user confirmation")
@click.option("--accept-data-loss", is_flag=True, help="Go on although this server has forgotten acknowledged writes")
def recover_from_quorum_loss(quiet: bool, accept_data_loss: bool) -> None:
    """Recover an instance whose cluster has lost quorum."""
    _must_be_stopped()
    with _told():
        found = recovery.overview(_database())
        if not (
            _is_clustered() or accept_data_loss or found.damage
        ):  # for a damaged log a server by itself needs this, too
            raise click.ClickException("This server is not clustered")
        if not quiet:
            warning = f"{RECOVER_WARNING}\nThe log of this server ends at {_end_of_log(found)}.\nCompare it with "
            _confirm(f'{warning}that of every other server you can reach ("incusd cluster show").\n', "Recover")
        done = recovery.recover(_database(), accept_damage=accept_data_loss)
    if not quiet:
        click.echo(f"Recovered as epoch {done.epoch}. A copy of the database as it was: {done.backup}")


@cluster.command("remove-raft-node")
@click.argument("address", required=False)
@click.option("-q", "--quiet", is_flag=True, help="Don't require user confirmation")
@click.pass_context
def remove_raft_node(context: click.Context, address: str | None, quiet: bool) -> None:
    """Remove a raft node from the raft configuration."""
    from urllib.parse import quote

    from incus_actors.lab.client import RequestFailedError, UnixClient

    if not address:
        click.echo(context.get_help())
        raise click.ClickException("Missing required arguments")
    if not quiet:
        _confirm(REMOVE_WARNING, "Remove raft node")
    socket_path = incus_directory() / "unix.socket"
    try:
        UnixClient(socket_path).request("DELETE", f"/internal/cluster/raft-node/{quote(address, safe='')}")
    except OSError as problem:
        raise click.ClickException(
            f"Failed to connect to daemon: {socket_path}: {problem.strerror or problem}"
        ) from None
    except RequestFailedError as problem:
        raise click.ClickException(str(problem)) from None


@cluster.command()
@click.option("-q", "--quiet", is_flag=True, help="Don't require user confirmation")
def rejoin(quiet: bool) -> None:
    """Give up the present database and join the cluster again."""
    _must_be_stopped()
    with _told():
        if not _is_clustered():
            raise click.ClickException("This server is not a member of a cluster")
        if not quiet:
            _confirm(REJOIN_WARNING, "Rejoin")
        recovery.give_up(_database(), "an operator asked to join the cluster again")
    click.echo("Start the daemon: it joins the cluster again, under a new id and its old name.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def admin() -> None:
    """Where the stock client looks for `cluster`."""


admin.add_command(cluster)
