"""`incus-actors config`: keys of the server and of instances, and the trust store below it.

Owns get, set, unset, show and edit with the stock client's requests: a whole-object PUT under If-Match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from incus_actors.cli import asking, remotes
from incus_actors.cli.api_client import ApiClient, url
from incus_actors.cli.base import ClientCommand, ClientGroup, server
from incus_actors.cli.shapes import Keys

_HERE = "incus_actors.cli.config:"
_INSTANCE_WRITABLE = ("architecture", "config", "devices", "ephemeral", "profiles", "stateful", "description")

_TEMPLATE = """### This is a YAML representation of the configuration.
### Any line starting with a '# will be ignored.

"""


@click.group(
    cls=ClientGroup,
    places={
        "edit": (_HERE + "edit", "Edit instance or server configurations as YAML"),
        "get": (_HERE + "get_", "Get values for instance or server configuration keys"),
        "set": (_HERE + "set_", "Set instance or server configuration keys"),
        "show": (_HERE + "show", "Show instance or server configurations"),
        "trust": ("incus_actors.cli.config_trust:trust", "Manage trusted clients"),
        "unset": (_HERE + "unset", "Unset instance or server configuration keys"),
    },
)
def config() -> None:
    """Manage instance and server configuration options."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The object that a command is about."""

    client: ApiClient
    path: str
    instance: bool

    def read(self) -> tuple[dict[str, Any], str]:
        """Return (object, ETag)."""
        return self.client.get_with_etag(self.path)

    def write(self, found: dict[str, Any], changed: dict[str, Any], etag: str) -> None:
        """Replace what can be written."""
        if self.instance:
            body = {key: changed.get(key, found.get(key)) for key in _INSTANCE_WRITABLE}
            self.client.run("PUT", self.path, body, etag=etag)
        else:
            self.client.put(self.path, {"config": changed["config"]}, etag=etag)


def _place(text: str, target: str) -> _Place:
    remote, instance = remotes.split(text)
    client = server(remote)
    if not instance:
        return _Place(client, url(target=target), instance=False)
    if target:
        raise click.ClickException("--target cannot be used with instances")
    project = client.project if client.project != "default" else ""
    return _Place(client, url("instances", instance, project=project), instance=True)


def _split_place(arguments: tuple[str, ...], *, least: int) -> tuple[str, tuple[str, ...]]:
    """Return (place, the rest): the first argument is a place unless the rest is complete without it.

    Raises ClickException for too few arguments.
    """
    if len(arguments) < least:
        raise click.ClickException("Invalid number of arguments")
    first = arguments[0]
    if "=" in first.partition(":")[0] or ("=" in first and ":" not in first.partition("=")[0]):
        return "", arguments
    if len(arguments) > least and not (least == 1 and len(arguments) == 2 and "=" not in arguments[1] and _key(first)):
        return first, arguments[1:]
    return "", arguments


def _key(text: str) -> bool:
    """Whether a text looks like a configuration key and not like a place: "core.https_address"."""
    return "." in text and not text.endswith(":")


_TARGET = click.option("--target", default="", help="Cluster member name")


@click.command(cls=ClientCommand, name="get")
@click.argument("arguments", nargs=-1, required=True, metavar="[<remote>:][<instance>] <key>")
@click.option("-e", "--expanded", is_flag=True, help="Access the expanded configuration")
@_TARGET
def get_(arguments: tuple[str, ...], expanded: bool, target: str) -> None:
    """Get values for instance or server configuration keys."""
    if len(arguments) > 2:
        raise click.ClickException("Invalid number of arguments")
    place = _place(arguments[0] if len(arguments) == 2 else "", target)
    found, _etag = place.read()
    keys = found.get("expanded_config" if expanded and place.instance else "config") or {}
    click.echo(keys.get(arguments[-1], ""))


@click.command(cls=ClientCommand, name="set")
@click.argument("arguments", nargs=-1, required=True, metavar="[<remote>:][<instance>] <key>=<value>...")
@_TARGET
def set_(arguments: tuple[str, ...], target: str) -> None:
    """Set instance or server configuration keys.

    A single key may also be set with: config set [<remote>:][<instance>] <key> <value>
    """
    from incus_actors.cli.key_values import parse

    place, pairs = _split_place(arguments, least=1)
    if not pairs:
        raise click.ClickException("Invalid number of arguments")
    _change(_place(place, target), parse(pairs))


@click.command(cls=ClientCommand)
@click.argument("arguments", nargs=-1, required=True, metavar="[<remote>:][<instance>] <key>")
@_TARGET
def unset(arguments: tuple[str, ...], target: str) -> None:
    """Unset instance or server configuration keys."""
    if len(arguments) > 2:
        raise click.ClickException("Invalid number of arguments")
    _change(_place(arguments[0] if len(arguments) == 2 else "", target), {arguments[-1]: ""})


def _change(place: _Place, values: dict[str, str]) -> None:
    found, etag = place.read()
    keys = {**(found.get("config") or {}), **values}
    place.write(found, {"config": keys}, etag)


@click.command(cls=ClientCommand)
@click.argument("place", default="", metavar="[<remote>:][<instance>]")
@click.option("-e", "--expanded", is_flag=True, help="Show the expanded configuration")
@_TARGET
def show(place: str, expanded: bool, target: str) -> None:
    """Show instance or server configurations."""
    from incus_actors.cli.yaml_text import dump

    where = _place(place, target)
    found, _etag = where.read()
    click.echo(dump(_shown(found, instance=where.instance, expanded=expanded)), nl=False)


def _shown(found: dict[str, Any], *, instance: bool, expanded: bool = False) -> dict[str, Any]:
    if not instance:
        return {"config": Keys(found.get("config") or {})}
    before = "expanded_" if expanded else ""
    return {
        "architecture": found.get("architecture", ""),
        "config": Keys(found.get(before + "config") or {}),
        "devices": Keys({name: Keys(keys) for name, keys in (found.get(before + "devices") or {}).items()}),
        "ephemeral": found.get("ephemeral", False),
        "profiles": found.get("profiles") or [],
        "stateful": found.get("stateful", False),
        "description": found.get("description", ""),
    }


@click.command(cls=ClientCommand)
@click.argument("place", default="", metavar="[<remote>:][<instance>]")
@_TARGET
def edit(place: str, target: str) -> None:
    """Edit configurations as YAML: from the standard input, or with an editor on a terminal."""
    from incus_actors.cli.yaml_text import dump

    where = _place(place, target)
    text = asking.input_text()
    found: dict[str, Any] = {}
    if text is not None:
        if where.instance:
            found, _ = where.read()
        where.write(found, _read(text), "")
        return
    found, etag = where.read()

    def accept(edited: str) -> None:
        where.write(found, _read(edited), etag)

    asking.edit_until_accepted(_TEMPLATE + dump(_shown(found, instance=where.instance)), accept)


def _read(text: str) -> dict[str, Any]:
    from incus_actors.cli.key_values import config_strings, read_yaml

    read = read_yaml(text)
    return {**read, "config": config_strings(read.get("config"))}
