"""`incus-actors cluster role`: what members do for the cluster.

Owns adding and removing roles; the server decides which may be changed by hand.
"""

from __future__ import annotations

import click

from incus_actors.cli import shapes
from incus_actors.cli.api_client import url
from incus_actors.cli.base import ClientCommand, ClientGroup, on_server
from incus_actors.cli.cluster import MEMBERS


@click.group(cls=ClientGroup)
def role() -> None:
    """Manage cluster roles."""


@role.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
@click.argument("roles", metavar="<role[,role...]>")
def add(member: str, roles: str) -> None:
    """Add roles to a cluster member."""
    client, name = on_server(member, MEMBERS)
    found, etag = client.get_with_etag(url("cluster", "members", name))
    put = shapes.member_put(shapes.member(found))
    for each in roles.split(","):
        if each in put["roles"]:
            raise click.ClickException(f'Member "{name}" already has role "{each}"')
    put["roles"] = [*put["roles"], *roles.split(",")]
    client.put(url("cluster", "members", name), put, etag=etag)


@role.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
@click.argument("roles", metavar="<role[,role...]>")
def remove(member: str, roles: str) -> None:
    """Remove roles from a cluster member."""
    client, name = on_server(member, MEMBERS)
    found, etag = client.get_with_etag(url("cluster", "members", name))
    put = shapes.member_put(shapes.member(found))
    for each in roles.split(","):
        if each not in put["roles"]:
            raise click.ClickException(f'Member "{name}" does not have role "{each}"')
    put["roles"] = [each for each in put["roles"] if each not in roles.split(",")]
    client.put(url("cluster", "members", name), put, etag=etag)
