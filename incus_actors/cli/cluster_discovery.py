"""`incus-actors cluster discover` and `cluster announce`: servers on the local network that wait to be joined.

Owns the two commands and what they print; init_discover.py forms a cluster of what is found. Discovery is a
convenience: when it finds nothing, the commands that always work are printed.
"""

from __future__ import annotations

import time
from typing import Any

import click

from incus_actors.cli import output
from incus_actors.cli.admin import local_daemon
from incus_actors.cli.api_client import ApiClient
from incus_actors.cli.base import ClientCommand
from incus_actors.cli.discovery_client import Candidate, Found, search
from incus_actors.cli.output import FORMAT_HELP
from incus_actors.errors import BadRequestError
from incus_actors.services.local_network import LocalInterface, local_interfaces
from incus_actors.transport.mdns import MdnsError

PATH = "/internal/discovery"
DEFAULT_TIMEOUT_S = 4.0
_POLL_S = 0.3

_MANUAL = """On each server that shall join, so that it can be found:
  incus-actors cluster announce
Or without discovery:
  incus-actors admin init            here, to make a cluster of this server
  incus-actors cluster add <name>    here, once for each server that shall join
  incus-actors admin init            on that server, with the token"""

_INTERFACES = click.option(
    "--interface", "interfaces", multiple=True, help="Only on this interface (may be given more than once)"
)
_IPV4 = click.option("--ipv4", "ipv4_only", is_flag=True, help="Only IPv4")

_COLUMNS: output.Columns = {
    "n": ("NAME", lambda c: c.name),
    "a": ("ADDRESS", lambda c: c.host),
    "i": ("INTERFACE", lambda c: c.interface),
    "f": ("FINGERPRINT", lambda c: c.fingerprint),
}


def usable_interfaces(names: tuple[str, ...], *, ipv4_only: bool) -> list[LocalInterface]:
    """Return the interfaces to use. Raises ClickException."""
    try:
        found = local_interfaces(names, ipv4_only=ipv4_only)
    except BadRequestError as problem:
        raise click.ClickException(str(problem)) from None
    if not found:
        raise click.ClickException(f"No interface of this server has a usable address.\n{_MANUAL}")
    return found


def look(interfaces: list[LocalInterface], *, timeout_s: float, enough: int = 0, own: str = "") -> Found:
    """Search, telling refused answers on stderr. Raises ClickException with the manual commands if nobody is there."""
    try:
        found = search(interfaces, timeout_s=timeout_s, enough=enough, own=own)
    except MdnsError as problem:
        raise click.ClickException(f"{problem}\n{_MANUAL}") from None
    for text in found.refused:
        click.echo(f"Refused: {text}", err=True)
    if not found.candidates:
        where = ", ".join(interface.name for interface in interfaces)
        raise click.ClickException(
            f"No server that waits to be joined was found on {where} within {timeout_s:g} s.\n{_MANUAL}"
        )
    return found


def shown(candidates: list[Candidate], text_format: str) -> str:
    """Return the table of candidates."""
    raw = [
        {"name": c.name, "address": c.host, "port": c.port, "interface": c.interface, "fingerprint": c.fingerprint}
        for c in candidates
    ]
    rows = [[make(each) for _heading, make in _COLUMNS.values()] for each in candidates]
    return output.render(text_format, [heading for heading, _make in _COLUMNS.values()], rows, raw)


@click.command(cls=ClientCommand)
@_INTERFACES
@_IPV4
@click.option("--timeout", "timeout_s", default=DEFAULT_TIMEOUT_S, show_default=True, help="Seconds to listen")
@click.option("--enough", default=0, help="End as soon as so many were heard")
@click.option("-f", "--format", "text_format", default="table", show_default=True, help=FORMAT_HELP)
def discover(interfaces: tuple[str, ...], ipv4_only: bool, timeout_s: float, enough: int, text_format: str) -> None:
    """Find servers on the local network that wait to be joined to a cluster.

    Nothing that is found is trusted: compare the fingerprints, or let `admin init --discover` confirm codes.
    """
    output.check_format(text_format)
    if not 0 < timeout_s <= 300:
        raise click.ClickException("--timeout must be more than 0 and at most 300 seconds")
    found = look(usable_interfaces(interfaces, ipv4_only=ipv4_only), timeout_s=timeout_s, enough=enough)
    output.echo(shown(found.candidates, text_format))


@click.command(cls=ClientCommand)
@_INTERFACES
@_IPV4
@click.option("--timeout", "timeout_s", default=0.0, help="Give up after so many seconds [default: wait until joined]")
@click.option("--stop", is_flag=True, help="Wait no more to be found")
@click.option("--background", is_flag=True, help="Return at once; codes are in the log, or shown by this command again")
def announce(interfaces: tuple[str, ...], ipv4_only: bool, timeout_s: float, stop: bool, background: bool) -> None:
    """Let this server be found by `admin init --discover` on another one, and show its codes until it has joined."""
    client = local_daemon()
    if stop:
        client.delete(PATH)
        return
    status = client.post(PATH, {"interfaces": list(interfaces), "ipv4_only": ipv4_only})
    click.echo(f"Waiting to be found as {status['name']} at {', '.join(status['addresses'])}.")
    click.echo(f"Fingerprint: {status['fingerprint']}")
    if background:
        return
    click.echo("Now run on the other server: incus-actors admin init --discover")
    try:
        _follow(client, time.monotonic() + timeout_s if timeout_s else None)
    except KeyboardInterrupt:
        client.delete(PATH)
        raise click.ClickException("This server can't be found any more") from None


def _follow(client: ApiClient, deadline: float | None) -> None:
    """Show each new code until this server is a member. Raises ClickException when it is given up."""
    told: set[tuple[str, str]] = set()
    while True:
        status: dict[str, Any] = client.get(PATH)
        for session in status["sessions"]:
            _tell(session, told)
        if status["member"]:
            click.echo(f"This server is now the member {status['member']}.")
            return
        if not status["waiting"]:
            raise click.ClickException("This server does not wait to be found any more")
        if deadline is not None and time.monotonic() > deadline:
            client.delete(PATH)
            raise click.ClickException("Nobody has joined this server to a cluster in time")
        time.sleep(_POLL_S)


def _tell(session: dict[str, Any], told: set[tuple[str, str]]) -> None:
    what = (f"{session['fingerprint']}{session['address']}", session["code"] or session["state"])
    if what in told:
        return
    told.add(what)
    who = f"{session['asker']} ({session['address'].rpartition(':')[0]}, fingerprint {session['fingerprint'][:12]})"
    if session["code"]:
        click.echo(f"\n{who} asks for this server.\nIf that is yours, type this code there: {session['code']}\n")
    elif session["state"] == "paired":
        click.echo(f"{who} knows the code.")
    else:
        click.echo(f"{who} does not know the code: refused.")
