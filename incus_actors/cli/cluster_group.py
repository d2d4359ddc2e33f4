"""`incus-actors cluster group`: groups of members, targets of `launch --target @group`.

Owns the commands on groups, with the stock client's texts.
"""

from __future__ import annotations

from typing import Any

import click

from incus_actors.cli import asking, output, shapes
from incus_actors.cli.api_client import url
from incus_actors.cli.base import ClientCommand, ClientGroup, flags, on_server, remote_of, server
from incus_actors.cli.cluster import MEMBERS, check_clustered
from incus_actors.cli.output import FORMAT_HELP

_GROUP = "Missing cluster group name"

_COLUMNS: output.Columns = {
    "n": ("NAME", lambda g: g["name"]),
    "d": ("DESCRIPTION", lambda g: g["description"]),
    "m": ("MEMBERS", lambda g: str(len(g["members"]))),
}

_TEMPLATE = """### This is a YAML representation of the cluster group.
### Any line starting with a '# will be ignored.

"""


@click.group(cls=ClientGroup, aliases={"ls": "list", "rm": "delete", "mv": "rename", "apply": "assign"})
def group() -> None:
    """Manage cluster groups."""


def _say(text: str) -> None:
    if not flags().quiet:
        click.echo(text)


@group.command(cls=ClientCommand, name="list")
@click.argument("remote", default="", metavar="[<remote>:]")
@click.option("-c", "--columns", default="ndm", show_default=True, help="Columns: n name, d description, m members")
@click.option("-f", "--format", "text_format", default="table", show_default=True, help=FORMAT_HELP)
def list_(remote: str, columns: str, text_format: str) -> None:
    """List all the cluster groups."""
    output.check_format(text_format)
    output.chosen(_COLUMNS, columns)
    client = server(remote_of(remote))
    check_clustered(client)
    groups = [shapes.group(each) for each in client.get(url("cluster", "groups", recursion="1"))]
    output.echo(output.listing(text_format, _COLUMNS, columns, groups))


@group.command(cls=ClientCommand)
@click.argument("group_name", metavar="[<remote>:]<group>")
def show(group_name: str) -> None:
    """Show cluster group configurations."""
    from incus_actors.cli.yaml_text import dump

    client, name = on_server(group_name, _GROUP)
    click.echo(dump(shapes.group(client.get(url("cluster", "groups", name)))), nl=False)


@group.command(cls=ClientCommand)
@click.argument("group_name", metavar="[<remote>:]<group>")
@click.option("--description", default="", help="Cluster group description")
def create(group_name: str, description: str) -> None:
    """Create a cluster group, from YAML on the standard input too."""
    client, name = on_server(group_name, _GROUP)
    text = asking.input_text()
    given = _writable(text) if text else {"description": "", "members": None}
    body = {"name": name, "description": description or given["description"], "members": given["members"]}
    client.post(url("cluster", "groups"), body)
    _say(f"Cluster group {name} created")


def _writable(text: str) -> dict[str, Any]:
    from incus_actors.cli.key_values import as_text, read_yaml

    read = read_yaml(text)
    members = read.get("members")
    if members is not None and not isinstance(members, list):
        raise click.ClickException('yaml: "members" is not a list')
    return {
        "description": as_text(read.get("description"), "description"),
        "members": [as_text(each, "members") for each in members or []],
    }


@group.command(cls=ClientCommand)
@click.argument("group_name", metavar="[<remote>:]<group>")
def edit(group_name: str) -> None:
    """Edit a cluster group: from YAML on the standard input, or with an editor on a terminal."""
    from incus_actors.cli.yaml_text import dump

    client, name = on_server(group_name, _GROUP)
    place = url("cluster", "groups", name)
    text = asking.input_text()
    if text is not None:
        client.put(place, _writable(text))
        return
    found, etag = client.get_with_etag(place)

    def accept(edited: str) -> None:
        client.put(place, _writable(edited), etag=etag)

    now = shapes.group(found)
    asking.edit_until_accepted(_TEMPLATE + dump({"description": now["description"], "members": now["members"]}), accept)


@group.command(cls=ClientCommand)
@click.argument("group_name", metavar="[<remote>:]<group>")
@click.argument("new_name")
def rename(group_name: str, new_name: str) -> None:
    """Rename a cluster group."""
    client, name = on_server(group_name, _GROUP)
    client.post(url("cluster", "groups", name), {"name": new_name})
    _say(f"Cluster group {name} renamed to {new_name}")


@group.command(cls=ClientCommand)
@click.argument("group_name", metavar="[<remote>:]<group>")
def delete(group_name: str) -> None:
    """Delete a cluster group."""
    client, name = on_server(group_name, _GROUP)
    client.delete(url("cluster", "groups", name))
    _say(f"Cluster group {name} deleted")


# -- members of groups ------------------------------------------------------------------------------------------------


@group.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
@click.argument("group_name", metavar="<group>")
def add(member: str, group_name: str) -> None:
    """Add member to group."""
    client, name = on_server(member, MEMBERS)
    found, etag = client.get_with_etag(url("cluster", "members", name))
    put = shapes.member_put(shapes.member(found))
    if group_name in put["groups"]:
        raise click.ClickException(f"Cluster member {name} is already in group {group_name}")
    put["groups"] = [*put["groups"], group_name]
    client.put(url("cluster", "members", name), put, etag=etag)
    _say(f"Cluster member {name} added to group {group_name}")


@group.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
@click.argument("group_name", metavar="<group>")
def remove(member: str, group_name: str) -> None:
    """Remove member from group."""
    client, name = on_server(member, MEMBERS)
    found, etag = client.get_with_etag(url("cluster", "members", name))
    put = shapes.member_put(shapes.member(found))
    if group_name not in put["groups"]:
        raise click.ClickException(f"Cluster group {group_name} isn't currently applied to {name}")
    put["groups"] = [each for each in put["groups"] if each != group_name]
    client.put(url("cluster", "members", name), put, etag=etag)
    _say(f"Cluster member {name} removed from group {group_name}")


@group.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
@click.argument("groups", metavar="<group[,group...]>")
def assign(member: str, groups: str) -> None:
    """Assign sets of groups to cluster members."""
    client, name = on_server(member, MEMBERS)
    found, etag = client.get_with_etag(url("cluster", "members", name))
    put = shapes.member_put(shapes.member(found))
    put["groups"] = groups.split(",") if groups else ["default"]
    client.put(url("cluster", "members", name), put, etag=etag)
    _say(f"Cluster member {name} added to cluster groups {','.join(put['groups'])}")
