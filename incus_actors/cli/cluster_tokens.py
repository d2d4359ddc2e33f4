"""`incus-actors cluster add`, `list-tokens`, `revoke-token`: letting servers in.

Owns join tokens on the command line, many at once as JSON included (WANTS 41).
"""

from __future__ import annotations

from typing import Any

import click

from incus_actors.cli import output, remotes, tokens
from incus_actors.cli.api_client import ApiClient, ApiFailureError, UnreachableError, url
from incus_actors.cli.base import ClientCommand, flags, named_server, remote_of, server
from incus_actors.cli.cluster import check_clustered
from incus_actors.cli.output import FORMAT_HELP


@click.command(cls=ClientCommand)
@click.argument("members", nargs=-1, required=True, metavar="[<remote>:]<member>...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for one member too")
def add(members: tuple[str, ...], as_json: bool) -> None:
    """Request a join token for adding a cluster member.

    With more than one member, their tokens are printed as a JSON list of objects with name, token, addresses,
    fingerprint and expires_at; if one of them is refused, none is made.
    """
    remote, first = remotes.split(members[0])
    names = [first, *members[1:]]
    if not all(names):
        raise click.ClickException("Missing cluster member name")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise click.ClickException(f"Named more than once: {', '.join(doubled)}")
    client = server(remote)
    made = _issue(client, names)
    if as_json or len(names) > 1:
        click.echo(output.go_json([_row(token) for token in made]))
        return
    if not flags().quiet:
        click.echo(f"Member {first} join token:")
    click.echo(tokens.encode(made[0]))


def _row(token: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": token["server_name"],
        "token": tokens.encode(token),
        "addresses": token["addresses"],
        "fingerprint": token["fingerprint"],
        "expires_at": token["expires_at"],
    }


def _issue(client: ApiClient, names: list[str]) -> list[dict[str, Any]]:
    """Make all tokens or none. Raises ClickException naming the member that was refused."""
    made: list[dict[str, Any]] = []
    operations: list[str] = []
    for name in names:
        try:
            operation = client.post(url("cluster", "members"), {"server_name": name})
            token = tokens.join_token(operation)
            operations.append(operation["id"])
            if token is None:
                raise click.ClickException("the server did not answer with a join token")
        except (ApiFailureError, UnreachableError) as failure:
            left = _revoke(client, operations)
            where = f"{name}: " if len(names) > 1 else ""
            raise click.ClickException(f"{where}{failure}{left}") from None
        made.append(token)
    return made


def _revoke(client: ApiClient, operations: list[str]) -> str:
    try:
        for operation in operations:
            client.delete(url("operations", operation))
    except (ApiFailureError, UnreachableError) as failure:
        return f" (and the tokens made before could not be revoked: {failure})"
    return ""


@click.command(cls=ClientCommand, name="list-tokens")
@click.argument("remote", default="", metavar="[<remote>:]")
@click.option("-c", "--columns", default="ntE", show_default=True, help="Columns: n name, t token, E expires at")
@click.option("-f", "--format", "text_format", default="table", show_default=True, help=FORMAT_HELP)
def list_tokens(remote: str, columns: str, text_format: str) -> None:
    """List all active cluster member join tokens."""
    name, _ = output.check_format(text_format)
    known = tokens.columns("server_name")
    output.chosen(known, columns)
    client = server(remote_of(remote))
    check_clustered(client)
    found = [token for token in map(tokens.join_token, tokens.live(client)) if token is not None]
    raw = [tokens.for_yaml(token) for token in found] if name == "yaml" else found
    output.echo(output.listing(text_format, known, columns, found, raw))


@click.command(cls=ClientCommand, name="revoke-token")
@click.argument("member", metavar="[<remote>:]<member>")
def revoke_token(member: str) -> None:
    """Revoke cluster member join token."""
    wanted, name = remotes.split(member)
    remote, client = named_server(wanted)
    check_clustered(client)
    for operation in tokens.live(client):
        token = tokens.join_token(operation)
        if token is not None and token["server_name"] == name:
            client.delete(url("operations", operation["id"]))
            if not flags().quiet:
                click.echo(f"Cluster join token for {remote}:{name} deleted")
            return
    raise click.ClickException(f"No cluster join token for member {name} on remote: {remote}")
