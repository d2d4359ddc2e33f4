"""`incus-actors cluster`: the members, as `incus cluster` shows and changes them.

Owns commands on members; tokens, roles, groups and discovery have modules of their own. Texts are the stock client's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from incus_actors.cli import asking, output, remotes, shapes
from incus_actors.cli.api_client import ApiClient, url
from incus_actors.cli.base import ClientCommand, ClientGroup, flags, named_server, on_server, remote_of, server
from incus_actors.cli.output import FORMAT_HELP

_HERE = "incus_actors.cli.cluster:"
_TOKENS = "incus_actors.cli.cluster_tokens:"
_DISCOVERY = "incus_actors.cli.cluster_discovery:"

MEMBERS = "Missing cluster member name"

_FORCE_WARNING = """Forcefully removing a server from the cluster should only be done as a last
resort.

The removed server will not be functional after this action and will require a
full reset, losing any remaining instance, image or storage volume that
the server may have held.

When possible, a graceful removal should be preferred, this will require you to
move any affected instance, image or storage volume to another server prior to
the server being cleanly removed from the cluster.

The --force flag should only be used if the server has died, been reinstalled
or is otherwise never expected to come back up.
"""


@click.group(
    cls=ClientGroup,
    places={
        "add": (_TOKENS + "add", "Request a join token for adding a cluster member"),
        "announce": (_DISCOVERY + "announce", "Let this server be found and joined to a cluster"),
        "discover": (_DISCOVERY + "discover", "Find servers on the local network that wait to be joined"),
        "edit": (_HERE + "edit", "Edit cluster member configurations as YAML"),
        "enable": (_HERE + "enable", "Enable clustering on a single non-clustered server"),
        "get": (_HERE + "get_", "Get values for cluster member configuration keys"),
        "group": ("incus_actors.cli.cluster_group:group", "Manage cluster groups"),
        "info": (_HERE + "info", "Show useful information about a cluster member"),
        "list": (_HERE + "list_", "List all the cluster members"),
        "list-tokens": (_TOKENS + "list_tokens", "List all active cluster member join tokens"),
        "remove": (_HERE + "remove", "Remove a member from the cluster"),
        "rename": (_HERE + "rename", "Rename a cluster member"),
        "revoke-token": (_TOKENS + "revoke_token", "Revoke cluster member join token"),
        "role": ("incus_actors.cli.cluster_role:role", "Manage cluster roles"),
        "set": (_HERE + "set_", "Set a cluster member's configuration keys"),
        "show": (_HERE + "show", "Show details of a cluster member"),
        "unset": (_HERE + "unset", "Unset a cluster member's configuration keys"),
        "update-certificate": (_HERE + "update_certificate", "Update cluster certificate"),
    },
    aliases={"ls": "list", "rm": "remove", "mv": "rename", "update-cert": "update-certificate"},
)
def cluster() -> None:
    """Manage cluster members."""


def check_clustered(client: ApiClient) -> None:
    """Raise ClickException if the server is no member of a cluster."""
    if not client.get(url("cluster"))["enabled"]:
        raise click.ClickException("Server isn't part of a cluster")


def member_columns(text_format: str) -> output.Columns:
    """Return the columns of `incus cluster list` by their letters, in its order."""
    between = "," if text_format == "csv" else "\n"
    return {
        "n": ("NAME", lambda m: m["server_name"]),
        "u": ("URL", lambda m: m["url"]),
        "r": ("ROLES", lambda m: between.join(m["roles"])),
        "a": ("ARCHITECTURE", lambda m: m["architecture"]),
        "f": ("FAILURE DOMAIN", lambda m: m["failure_domain"]),
        "d": ("DESCRIPTION", lambda m: m["description"]),
        "s": ("STATUS", lambda m: m["status"].upper()),
        "m": ("MESSAGE", lambda m: m["message"]),
    }


@click.command(cls=ClientCommand, name="list")
@click.argument("remote", default="", metavar="[<remote>:]")
@click.option("--all-projects", is_flag=True, help="Display clusters from all projects")
@click.option("-c", "--columns", default="nurafdsm", show_default=True, help="Columns")
@click.option("-f", "--format", "text_format", default="table", show_default=True, help=FORMAT_HELP)
def list_(remote: str, all_projects: bool, columns: str, text_format: str) -> None:
    """List all the cluster members.

    Columns: n name, u URL, r roles, a architecture, f failure domain, d description, s status, m message.
    """
    output.check_format(text_format)
    known = member_columns(text_format)
    output.chosen(known, columns)
    client = server(remote_of(remote))
    check_clustered(client)
    members = [shapes.member(each) for each in client.get(url("cluster", "members", recursion="1"))]
    output.echo(output.listing(text_format, known, columns, members))


@click.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
def show(member: str) -> None:
    """Show details of a cluster member."""
    from incus_actors.cli.yaml_text import dump

    client, name = on_server(member, MEMBERS)
    click.echo(dump(shapes.member(client.get(url("cluster", "members", name)))), nl=False)


@click.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
def info(member: str) -> None:
    """Show useful information about a cluster member."""
    from incus_actors.cli.yaml_text import dump

    client, name = on_server(member, MEMBERS)
    click.echo(dump(shapes.member_state(client.get(url("cluster", "members", name, "state")))), nl=False)


# -- keys and properties ----------------------------------------------------------------------------------------------


@click.command(cls=ClientCommand, name="get")
@click.argument("member", metavar="[<remote>:]<member>")
@click.argument("key")
@click.option("-p", "--property", "is_property", is_flag=True, help="Get the key as a cluster property")
def get_(member: str, key: str, is_property: bool) -> None:
    """Get values for cluster member configuration keys."""
    client, name = on_server(member, MEMBERS)
    found = shapes.member_put(shapes.member(client.get(url("cluster", "members", name))))
    if is_property:
        if key not in found:
            raise click.ClickException(
                f'The property "{key}" does not exist on the cluster member "{name}": '
                f'The property with tag "{key}" does not exist'
            )
        click.echo(_go_text(found[key]))
    elif key in found["config"]:
        click.echo(found["config"][key])
    else:
        raise click.ClickException(f'The key "{key}" does not exist on cluster member "{name}"')


def _go_text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{value[key]}" for key in sorted(value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


@click.command(cls=ClientCommand, name="set")
@click.argument("member", metavar="[<remote>:]<member>")
@click.argument("pairs", nargs=-1, required=True, metavar="<key>=<value>...")
@click.option("-p", "--property", "is_property", is_flag=True, help="Set the key as a cluster property")
def set_(member: str, pairs: tuple[str, ...], is_property: bool) -> None:
    """Set a cluster member's configuration keys."""
    from incus_actors.cli.key_values import parse

    _change(member, parse(pairs), is_property=is_property)


@click.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
@click.argument("key")
@click.option("-p", "--property", "is_property", is_flag=True, help="Unset the key as a cluster property")
def unset(member: str, key: str, is_property: bool) -> None:
    """Unset a cluster member's configuration keys."""
    _change(member, {key: ""}, is_property=is_property, unset=True)


def _change(member: str, values: dict[str, str], *, is_property: bool, unset: bool = False) -> None:
    client, name = on_server(member, MEMBERS)
    found, etag = client.get_with_etag(url("cluster", "members", name))
    put = shapes.member_put(found)
    if not is_property:
        put["config"] = {**put["config"], **values}
        client.put(url("cluster", "members", name), put, etag=etag)
        return
    for key, value in values.items():
        if key in ("roles", "groups"):
            raise click.ClickException(f'"{key}" is a list: use `cluster role` or `cluster group`')
        if key not in ("description", "failure_domain"):
            what = "Error unsetting property" if unset else "Error setting properties"
            raise click.ClickException(f'{what}: The property with tag "{key}" does not exist')
        put[key] = value
    client.put(url("cluster", "members", name), put, etag=etag)


_TEMPLATE = """### This is a YAML representation of the cluster member.
### Any line starting with a '# will be ignored.

"""


@click.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
def edit(member: str) -> None:
    """Edit cluster member configurations as YAML: from the standard input, or with an editor on a terminal."""
    from incus_actors.cli.yaml_text import dump

    client, name = on_server(member, MEMBERS)
    place = url("cluster", "members", name)
    text = asking.input_text()
    if text is not None:
        client.put(place, _writable(text))
        return
    found, etag = client.get_with_etag(place)

    def accept(edited: str) -> None:
        client.put(place, _writable(edited), etag=etag)

    asking.edit_until_accepted(_TEMPLATE + dump(shapes.member_put(shapes.member(found))), accept)


def _writable(text: str) -> dict[str, Any]:
    """Return what a PUT takes; what cannot be written is ignored. Raises ClickException."""
    from incus_actors.cli.key_values import as_text, config_strings, read_yaml

    read = read_yaml(text)
    put: dict[str, Any] = {"config": config_strings(read.get("config"))}
    for key in ("failure_domain", "description"):
        put[key] = as_text(read.get(key), key)
    for key in ("roles", "groups"):
        given = read.get(key)
        if given is not None and not isinstance(given, list):
            raise click.ClickException(f'yaml: "{key}" is not a list')
        put[key] = [as_text(each, key) for each in given or []]
    return shapes.member_put(put)


# -- life of members --------------------------------------------------------------------------------------------------


@click.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
@click.argument("new_name")
def rename(member: str, new_name: str) -> None:
    """Rename a cluster member."""
    client, name = on_server(member, MEMBERS)
    client.post(url("cluster", "members", name), {"server_name": new_name})
    if not flags().quiet:
        click.echo(f"Member {name} renamed to {new_name}")


@click.command(cls=ClientCommand)
@click.argument("member", metavar="[<remote>:]<member>")
@click.option("-f", "--force", is_flag=True, help="Force removing a member, even if degraded")
@click.option("--yes", is_flag=True, help="Don't require user confirmation for using --force")
def remove(member: str, force: bool, yes: bool) -> None:
    """Remove a member from the cluster."""
    client, name = on_server(member, MEMBERS)
    if force and not yes:
        click.echo(_FORCE_WARNING)
        question = f"Are you really sure you want to force removing {name}? (yes/no): "
        if not asking.ask_bool(question):
            raise click.ClickException("User aborted delete operation")
    client.delete(url("cluster", "members", name, force="1" if force else ""))
    if not flags().quiet:
        click.echo(f"Member {name} removed")


@click.command(cls=ClientCommand)
@click.argument("arguments", nargs=-1, required=True, metavar="[<remote>:] <name>")
def enable(arguments: tuple[str, ...]) -> None:
    """Enable clustering on a single non-clustered server.

    This command turns a non-clustered server into the first member of a new cluster, which will have the given name.
    The server must be available on the network already: see `config get core.https_address`.
    """
    if len(arguments) > 2:
        raise click.ClickException("Invalid number of arguments")
    client = server(remote_of(arguments[0]) if len(arguments) == 2 else "")
    config = client.get("/1.0")["config"]
    if not (config.get("core.https_address") or config.get("cluster.https_address")):
        raise click.ClickException("This server is not available on the network")
    now, etag = client.get_with_etag(url("cluster"))
    if now["server_name"]:
        raise click.ClickException("This server is already clustered")
    client.run("PUT", url("cluster"), {"server_name": arguments[-1], "enabled": True}, etag=etag)
    click.echo("Clustering enabled")


@click.command(cls=ClientCommand, name="update-certificate")
@click.argument("arguments", nargs=-1, required=True, metavar="[<remote>:] <cert.crt> <cert.key>")
def update_certificate(arguments: tuple[str, ...]) -> None:
    """Update cluster certificate with PEM certificate and key read from input files."""
    if len(arguments) not in (2, 3):
        raise click.ClickException("Invalid number of arguments")
    remote, client = named_server(remote_of(arguments[0]) if len(arguments) == 3 else "")
    contents = []
    for what, file in zip(("certificate", "certificate key"), arguments[-2:], strict=True):
        if not Path(file).exists():
            raise click.ClickException(f"Could not find {what} file path: {file}")
        contents.append(Path(file).read_text())
    check_clustered(client)
    body = {"cluster_certificate": contents[0], "cluster_certificate_key": contents[1]}
    client.put(url("cluster", "certificate"), body)
    remotes.keep_certificate(remote, contents[0])
    click.echo("Successfully updated cluster certificates")
