"""`incus-actors admin`: this machine's daemon itself.

Owns waitready, shutdown and sql; `admin init` has modules of its own. Only the unix socket is used.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from incus_actors.cli import output, remotes
from incus_actors.cli.api_client import ApiClient, ApiFailureError, UnreachableError, unix_client
from incus_actors.cli.base import ClientCommand, ClientGroup
from incus_actors.cli.output import FORMAT_HELP

_HERE = "incus_actors.cli.admin:"


@click.group(
    cls=ClientGroup,
    places={
        "init": ("incus_actors.cli.admin_init:init", "Configure the daemon"),
        "shutdown": (_HERE + "shutdown", "Tell the daemon to shutdown all instances and exit"),
        "sql": (_HERE + "sql", "Execute a SQL query against the local or global database"),
        "waitready": (_HERE + "waitready", "Wait for the daemon to be ready to process requests"),
    },
)
def admin() -> None:
    """Manage incus daemon."""


def local_daemon() -> ApiClient:
    """Return a client of the unix socket. Raises ClickException if nobody answers there."""
    client = unix_client(remotes.socket_path())
    try:
        client.get("/1.0")
    except UnreachableError as failure:
        raise click.ClickException(f"Failed to connect to local daemon: {failure}") from None
    return client


@click.command(cls=ClientCommand)
@click.option("-t", "--timeout", default=0, help="Number of seconds to wait before giving up")
def waitready(timeout: int) -> None:
    """Wait for the daemon to be ready to process requests."""
    client = unix_client(remotes.socket_path())
    deadline = time.monotonic() + timeout if timeout else None
    while True:
        left = 10.0 if deadline is None else max(deadline - time.monotonic(), 0.1)
        try:
            client.get("/1.0", timeout_s=left)
            client.get("/internal/ready", timeout_s=left)
        except (UnreachableError, ApiFailureError) as failure:
            if deadline is not None and time.monotonic() + 0.2 > deadline:
                raise click.ClickException(f"Daemon still not running after {timeout}s timeout ({failure})") from None
            time.sleep(0.2)
        else:
            return


@click.command(cls=ClientCommand)
@click.option("-f", "--force", is_flag=True, help="Force shutdown instead of waiting for running operations to finish")
@click.option("-t", "--timeout", default=0, help="Number of seconds to wait before giving up")
def shutdown(force: bool, timeout: int) -> None:
    """Tell the daemon to shutdown all instances and exit."""
    client = local_daemon()
    path = f"/internal/shutdown?force={'true' if force else 'false'}"
    try:
        client.request("PUT", path, timeout_s=float(timeout) if timeout else 24 * 3600)
    except UnreachableError as failure:
        if isinstance(failure.__cause__, TimeoutError):
            raise click.ClickException(f"Daemon still running after {timeout}s timeout") from None
        return  # the connection ends when the daemon does


@click.command(cls=ClientCommand)
@click.argument("database", metavar="<local|global>")
@click.argument("query")
@click.option("-f", "--format", "text_format", default="table", show_default=True, help=FORMAT_HELP)
def sql(database: str, query: str, text_format: str) -> None:
    """Execute a SQL query against the local or global database.

    "-" reads the query from the standard input, ".dump" and ".schema" print the database as SQL text, ".sync" waits
    until everything is on disk. Writes go through the log, as all others.
    """
    output.check_format(text_format)
    if database not in ("local", "global"):
        raise click.ClickException("Invalid database type")
    if query == "-":
        query = sys.stdin.read()
    if not query:
        raise click.ClickException("No query provided")
    client = local_daemon()
    if query in (".dump", ".schema"):
        schema = "&schema=1" if query == ".schema" else ""
        click.echo(client.get(f"/internal/sql?database={database}{schema}")["text"], nl=False)
        return
    answer = client.post("/internal/sql", {"database": database, "query": query})
    results = answer.get("Results") or []
    for number, result in enumerate(results):
        if len(results) > 1:
            click.echo(f"=> Query {number}:\n")
        _show(result, text_format)
        if len(results) > 1:
            click.echo()


def _show(result: dict[str, Any], text_format: str) -> None:
    if result["type"] != "select":
        click.echo(f"Rows affected: {result['rows_affected']}")
        return
    raw = {key: result[key] for key in ("type", "columns", "rows", "rows_affected")}
    rows = [[_cell(value) for value in row] for row in result["rows"] or []]
    output.echo(output.render(text_format, result["columns"], rows, raw))


def _cell(value: Any) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return str(value)
