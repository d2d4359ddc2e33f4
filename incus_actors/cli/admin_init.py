"""`incus-actors admin init`: everything from a fresh daemon to a working server or member.

Owns the modes (questions, --preseed, --auto, --minimal, --dump, --discover), which flags go together, and how failures
are told; the questions, preseeds and joins have modules of their own. Talks to this machine's daemon only.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import click

from incus_actors.cli import joining
from incus_actors.cli.admin import local_daemon
from incus_actors.cli.api_client import ApiClient, url
from incus_actors.cli.base import ClientCommand
from incus_actors.cli.preseed import Entry, Preseed, PreseedError, as_yaml, parse
from incus_actors.cli.preseed_apply import apply
from incus_actors.errors import BadRequestError
from incus_actors.services.addresses import normalise


@dataclass(frozen=True, slots=True)
class Automatic:
    """What the flags of --auto say."""

    network_address: str = ""
    network_port: int = -1
    storage_backend: str = ""
    create_device: str = ""
    create_loop: int = -1
    storage_pool: str = ""

    def given(self) -> bool:
        """Whether any of them was used."""
        return self != Automatic()


@click.command(cls=ClientCommand)
@click.option("--auto", is_flag=True, help="Automatic (non-interactive) mode")
@click.option("--discover", is_flag=True, help="Find the other servers on the local network and form a cluster")
@click.option("--dump", is_flag=True, help="Dump YAML config to stdout")
@click.option("--minimal", is_flag=True, help="Minimal configuration (non-interactive)")
@click.option("--network-address", default="", help="Address to bind to (default: none)")
@click.option("--network-port", default=-1, help="Port to bind to (default: 8443)")
@click.option("--preseed", "preseed", is_flag=True, help="Pre-seed mode, expects YAML config from stdin")
@click.option("--storage-backend", default="", help="Storage backend to use (btrfs, dir, lvm or zfs, default: dir)")
@click.option("--storage-create-device", "create_device", default="", help="Setup device based storage using DEVICE")
@click.option("--storage-create-loop", "create_loop", default=-1, help="Setup loop based storage with SIZE in GiB")
@click.option("--storage-pool", default="", help="Storage pool to use or create")
def init(
    auto: bool,
    discover: bool,
    dump: bool,
    minimal: bool,
    network_address: str,
    network_port: int,
    preseed: bool,
    storage_backend: str,
    create_device: str,
    create_loop: int,
    storage_pool: str,
) -> None:
    """Configure the daemon."""
    automatic = Automatic(network_address, network_port, storage_backend, create_device, create_loop, storage_pool)
    _check_flags(auto=auto, discover=discover, dump=dump, minimal=minimal, preseed=preseed, automatic=automatic)
    client = local_daemon()
    try:
        if dump:
            from incus_actors.cli.init_dump import dumped

            click.echo(dumped(client))
        elif preseed:
            _report(run_preseed(client, parse_file(sys.stdin.read())))
        elif auto or minimal:
            from incus_actors.cli.init_auto import automatic_preseed

            apply(client, automatic_preseed(client, automatic))
        elif discover:
            from incus_actors.cli.init_discover import form

            form(client)
        else:
            _interactive(client)
    except PreseedError as problem:
        raise click.ClickException(str(problem)) from None
    except joining.JoiningError as problem:
        raise click.ClickException(str(problem)) from None


def _check_flags(*, auto: bool, discover: bool, dump: bool, minimal: bool, preseed: bool, automatic: Automatic) -> None:
    """Raise ClickException, in the stock client's words, for flags that don't go together."""
    if auto and preseed:
        raise click.ClickException("Can't use --auto and --preseed together")
    if minimal and preseed:
        raise click.ClickException("Can't use --minimal and --preseed together")
    if minimal and auto:
        raise click.ClickException("Can't use --minimal and --auto together")
    if dump and (auto or minimal or preseed or discover or automatic.given()):
        raise click.ClickException("Can't use --dump with other flags")
    if discover and (auto or minimal or preseed or automatic.given()):
        raise click.ClickException("Can't use --discover with other flags")
    if not auto and automatic.given():
        raise click.ClickException("Configuration flags require --auto")


def _report(changes: list[str]) -> None:
    """Say on stderr what a preseed changed: scripts see an empty standard output, as from the stock client."""
    if sys.stderr.isatty():
        click.echo(f"Configured: {', '.join(changes)}" if changes else "Everything was as wanted already", err=True)


# -- questions --------------------------------------------------------------------------------------------------------


def _interactive(client: ApiClient) -> None:
    from incus_actors.cli import init_questions as questions

    decided = questions.ask(client, client.get("/1.0"))
    if decided.joining is not None:
        _join_interactively(client, decided.joining)
        return
    if questions.ask_print():
        click.echo(as_yaml(decided.preseed))
    apply(client, decided.preseed)


def _join_interactively(client: ApiClient, decided: Any) -> None:
    from incus_actors.cli import init_questions as questions

    with questions.introduced(decided) as introduction:
        config = questions.ask_member_config(introduction.member_config())
        if questions.ask_print():
            click.echo(as_yaml(questions.join_preseed(decided, config), cluster_only=True))
        joining.join(
            client, decided.member, name=decided.name, server_address=decided.server_address, token="", config=config
        )
        introduction.keep()


# -- preseeds ---------------------------------------------------------------------------------------------------------


def parse_file(text: str) -> Preseed:
    """Return what a file says. Raises ClickException with every mistake and its line."""
    try:
        return parse(text)
    except PreseedError as problem:
        raise click.ClickException(f"Failed to parse the preseed: {problem}") from None


def run_preseed(client: ApiClient, preseed: Preseed) -> list[str]:
    """Do what a preseed says; return what was changed. Raises PreseedError, JoiningError."""
    if not preseed.joins:
        return apply(client, preseed)
    assert preseed.cluster is not None
    for section, line in preseed.sections().items():
        click.echo(f'Warning: line {line}: "{section}" is ignored: a joining server gets it from the cluster', err=True)
    return _join_by_preseed(client, preseed.cluster)


def _join_by_preseed(client: ApiClient, cluster: Entry) -> list[str]:
    token, name = _name_in(cluster)
    now = client.get(url("cluster"))
    if now["enabled"]:
        if now["server_name"] == name:
            return []
        raise joining.JoiningError("Failed to join cluster: This server is already clustered")
    _check_complete(cluster, token, name)
    member = _target(cluster, token)
    config = cluster["member_config"] or None
    server_address = normalise(cluster["server_address"])
    if not cluster["cluster_password"]:
        text = token.text if token is not None else ""
        joining.join(client, member, name=name, server_address=server_address, token=text, config=config)
        return [f"cluster member {name}"]
    if os.geteuid() != 0:
        raise joining.JoiningError("Joining an existing cluster requires root privileges")
    with joining.Introduction(member, name, password=cluster["cluster_password"]).introduce() as introduction:
        joining.join(client, member, name=name, server_address=server_address, token="", config=config)
        introduction.keep()
    return [f"cluster member {name}"]


def _name_in(cluster: Entry) -> tuple[joining.Token | None, str]:
    if not cluster["cluster_token"]:
        return None, cluster["server_name"]
    try:
        token = joining.decode_token(cluster["cluster_token"])
    except joining.JoiningError as problem:
        raise joining.JoiningError(f"Invalid cluster join token: {problem}") from None
    given = cluster["server_name"]
    if given and given != token.server_name:
        raise PreseedError(
            [f'line {cluster.at("server_name")}: the join token is for "{token.server_name}", not for "{given}"']
        )
    return token, token.server_name


def _check_complete(cluster: Entry, token: joining.Token | None, name: str) -> None:
    """Raise PreseedError with every missing or contradicting field."""
    problems = []
    if not cluster["enabled"]:
        problems.append((cluster.at("enabled"), 'a server that joins needs "enabled: true"'))
    if not cluster["server_address"]:
        problems.append((cluster.line, 'a server that joins needs a "server_address"'))
    if not name:
        problems.append((cluster.line, "ServerName is required when enabling clustering"))
    certificate = cluster["cluster_certificate"] or cluster["cluster_certificate_path"]
    if cluster["cluster_certificate"] and cluster["cluster_certificate_path"]:
        problems.append((cluster.at("cluster_certificate_path"), "the cluster certificate is given twice"))
    if token is None and not certificate:
        text = 'without a token a "cluster_certificate" or "cluster_certificate_path" is needed'
        problems.append((cluster.at("cluster_address"), text))
    if token is not None and cluster["cluster_password"]:
        problems.append((cluster.at("cluster_password"), "a token needs no password"))
    for field in ("server_address", "cluster_address"):
        try:
            normalise(cluster[field])
        except BadRequestError as problem:
            problems.append((cluster.at(field), str(problem)))
    if problems:
        raise PreseedError([f"line {line}: {text}" for line, text in sorted(problems)])


def _target(cluster: Entry, token: joining.Token | None) -> joining.Member:
    pem = cluster["cluster_certificate"]
    if cluster["cluster_certificate_path"]:
        pem = joining.read_certificate(cluster["cluster_certificate_path"])
    if pem:
        address = cluster["cluster_address"] or (token.addresses[0] if token is not None else "")
        return joining.pinned_member(address, pem)
    assert token is not None
    return joining.member_of(token)
