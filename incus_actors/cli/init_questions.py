"""The questions of `admin init`, in the stock client's order and words.

Owns asking: it returns what was decided and sends nothing but read-only probes; admin_init.py does the rest. Must never
take nonsense: each answer is checked, and asked for again.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import click

from incus_actors.cli import asking, init_checks, joining
from incus_actors.cli.api_client import ApiClient, url
from incus_actors.cli.asking import InvalidAnswerError, ask_bool, ask_text
from incus_actors.cli.preseed import Entry, Preseed, entry
from incus_actors.cli.storage_questions import ask_storage
from incus_actors.errors import BadRequestError
from incus_actors.services.addresses import join_host, normalise

PASSWORD_ATTEMPTS = 3


@dataclass(slots=True)
class Joining:
    """What was decided about joining. Without a token, `password` lets us in."""

    member: joining.Member
    name: str
    server_address: str
    token: str = ""
    takes_password: bool = False


@dataclass(slots=True)
class Decisions:
    """Everything that was answered."""

    preseed: Preseed
    joining: Joining | None = None


def ask(client: ApiClient, server: dict[str, Any]) -> Decisions:
    """Ask everything that is asked before anything is sent. Raises ClickException: aborted, or not possible."""
    preseed = Preseed(profiles=[entry("profiles", name="default", project="default")])
    if ask_bool("Would you like to use clustering? (yes/no) [default=no]: ", "no"):
        if server["environment"].get("server_clustered"):
            raise click.ClickException("This server is already clustered")
        address = ask_own_address(server)
        if ask_bool("Are you joining an existing cluster? (yes/no) [default=no]: ", "no"):
            return Decisions(preseed, _ask_joining(address))
        preseed.config["core.https_address"] = address
        name = ask_member_name()
        preseed.cluster = entry("cluster", server_name=name, enabled=True)
        _ask_password(preseed)
    ask_storage(client, server, preseed)
    _ask_network(client, server, preseed)
    _ask_user_namespace(preseed)
    if preseed.cluster is None:
        _ask_listening(preseed)
    question = "Would you like stale cached images to be updated automatically? (yes/no) [default=yes]: "
    if not ask_bool(question, "yes"):
        preseed.config["images.auto_update_interval"] = "0"
    return Decisions(preseed)


def ask_print() -> bool:
    """Return whether the preseed shall be printed."""
    return ask_bool('Would you like a YAML "init" preseed to be printed? (yes/no) [default=no]: ', "no")


# -- clustering -------------------------------------------------------------------------------------------------------


def ask_own_address(server: dict[str, Any]) -> str:
    """Ask where this server is reached; return host:port."""
    config = server.get("config") or {}
    configured = str(config.get("cluster.https_address") or config.get("core.https_address") or "")
    default = init_checks.own_address()
    text = ask_text(
        f"What IP address or DNS name should be used to reach this server? [default={default}]: ",
        default,
        lambda answer: init_checks.check_cluster_address(answer, configured),
    )
    return normalise(text)


def ask_member_name() -> str:
    """Ask what this server is called in the cluster."""
    default = socket.gethostname() or "localhost"
    return ask_text(
        f"What member name should be used to identify this server in the cluster? [default={default}]: ",
        default,
        init_checks.check_member_name,
    )


def _ask_password(preseed: Preseed) -> None:
    if not ask_bool("Setup password authentication on the cluster? (yes/no) [default=no]: ", "no"):
        return
    while True:
        password = asking.ask_password("Trust password for new clients: ")
        if password == asking.ask_password("Again: "):
            break
        click.echo("Invalid input, try again.\n", err=True)
    preseed.config["core.trust_password"] = password


# -- joining ----------------------------------------------------------------------------------------------------------


def _ask_joining(address: str) -> Joining:
    if os.geteuid() != 0:
        raise click.ClickException("Joining an existing cluster requires root privileges")
    click.echo('Without a token answer "no": then a member\'s address and the trust password are asked for.')
    text = ask_text("Please provide join token: ", check=_check_token)
    found = _without_token(address) if text.lower() in ("no", "n") else _with_token(text, address)
    if not ask_bool("All existing data is lost when joining a cluster, continue? (yes/no) [default=no] ", "no"):
        raise click.ClickException("User aborted configuration")
    return found


def _check_token(text: str) -> None:
    if text.lower() in ("no", "n"):
        return
    try:
        joining.decode_token(text)
    except joining.JoiningError as problem:
        raise InvalidAnswerError(f"Invalid join token: {problem}") from None


def _with_token(text: str, address: str) -> Joining:
    token = joining.decode_token(text)
    return Joining(joining.member_of(token), token.server_name, address, token=token.text)


def _without_token(address: str) -> Joining:
    name = ask_member_name()
    found: list[joining.Member] = []

    def check(text: str) -> None:
        try:
            if not text:
                raise InvalidAnswerError("an address is needed")
            found.append(joining.member_at(text))
        except joining.JoiningError as problem:
            raise InvalidAnswerError(str(problem)) from None

    ask_text("IP address or FQDN of an existing cluster member (may include port): ", check=check)
    member = found[-1]
    confirm_fingerprint(member)
    if not joining.takes_password(member):
        raise click.ClickException(
            "This cluster accepts no trust password (core.trust_password is not set there): "
            f"ask for a token on one of its members with `incus-actors cluster add {name}`"
        )
    return Joining(member, name, address, takes_password=True)


def confirm_fingerprint(member: joining.Member) -> None:
    """Show the certificate's fingerprint; it must be confirmed or typed. Raises ClickException otherwise."""
    click.echo(f"Cluster fingerprint: {member.fingerprint}")
    click.echo('You can validate this fingerprint by running "incus info" locally on an existing cluster member.')
    typed: list[str] = []

    def check(answer: str) -> None:
        given = answer.lower().replace(":", "")
        if given in ("yes", "y", "no", "n"):
            typed.append(given)
        elif len(given) == 64 and all(char in "0123456789abcdef" for char in given):
            typed.append("yes" if given == member.fingerprint else "mismatch")
        else:
            raise InvalidAnswerError("answer yes, no, or all 64 digits of the fingerprint")

    ask_text("Is this the correct fingerprint? (yes/no/[fingerprint]) [default=no]: ", "no", check)
    if typed[-1] == "mismatch":
        raise click.ClickException(f'Certificate fingerprint mismatch: "{member.address}" is not who you expect')
    if typed[-1] not in ("yes", "y"):
        raise click.ClickException("User aborted configuration")


def introduced(decided: Joining) -> joining.Introduction:
    """Make ourselves known to the cluster, asking for the password where it needs one. Raises JoiningError."""
    if not decided.takes_password:
        return joining.Introduction(decided.member, decided.name, token=decided.token).introduce()
    attempt = 1
    while True:
        password = asking.ask_password("Cluster trust password: ")
        try:
            return joining.Introduction(decided.member, decided.name, password=password).introduce()
        except joining.RefusedError as problem:
            if attempt == PASSWORD_ATTEMPTS:
                raise
            click.echo(f"Invalid input: {problem}\n", err=True)
        attempt += 1


def ask_member_config(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask for each key that this member has for itself; empty answers leave it to the daemon."""
    return [
        {**each, "value": ask_text(f"Choose {each['description']}: ", check=lambda _answer: None)} for each in asked
    ]


def join_preseed(decided: Joining, member_config: list[dict[str, Any]]) -> Preseed:
    """Return what is printed for a join: the cluster section alone."""
    cluster = entry(
        "cluster",
        server_name=decided.name,
        enabled=True,
        member_config=member_config,
        cluster_address=decided.member.address,
        cluster_certificate=decided.member.pem,
        server_address=decided.server_address,
    )
    return Preseed(cluster=cluster)


# -- the network ------------------------------------------------------------------------------------------------------


def _ask_network(client: ApiClient, server: dict[str, Any], preseed: Preseed) -> None:
    profile = preseed.profiles[0]
    question = "Would you like to create a new local network bridge? (yes/no) [default=yes]: "
    if preseed.cluster is None and ask_bool(question, "yes"):
        _ask_bridge(client, preseed, profile)
        return
    question = "Would you like to use an existing bridge or host interface? (yes/no) [default=no]: "
    if not ask_bool(question, "no"):
        return
    while True:
        name = ask_text("Name of the existing bridge or host interface: ")
        if init_checks.interface_exists(name):
            break
        click.echo("The requested interface doesn't exist. Please choose another one.")
    managed = client.find(url("networks", name))
    if managed and managed.get("managed"):
        profile.values["devices"]["eth0"] = {"type": "nic", "name": "eth0", "network": name}
        return
    nictype = "bridged" if init_checks.is_bridge(name) else "macvlan"
    profile.values["devices"]["eth0"] = {"type": "nic", "name": "eth0", "nictype": nictype, "parent": name}


def _ask_bridge(client: ApiClient, preseed: Preseed, profile: Entry) -> None:
    while True:
        name = ask_text(
            "What should the new bridge be called? [default=incusbr0]: ", "incusbr0", init_checks.check_interface_name
        )
        if client.find(url("networks", name)) is None:
            break
        click.echo(f'The requested network bridge "{name}" already exists. Please choose another name.')
    config = {}
    for version in (4, 6):
        address = ask_text(
            f"What IPv{version} address should be used? (CIDR subnet notation, “auto” or “none”) [default=auto]: ",
            "auto",
            init_checks.check_subnet(version),
        )
        config[f"ipv{version}.address"] = address
        if address not in ("auto", "none"):
            question = f"Would you like to NAT IPv{version} traffic on your bridge? [default=yes]: "
            config[f"ipv{version}.nat"] = str(ask_bool(question, "yes")).lower()
    preseed.networks.append(entry("networks", name=name, project="default", config=config))
    profile.values["devices"]["eth0"] = {"type": "nic", "name": "eth0", "network": name}


# -- the rest ---------------------------------------------------------------------------------------------------------


def _ask_user_namespace(preseed: Preseed) -> None:
    if not init_checks.in_user_namespace():
        return
    click.echo(
        "\nWe detected that you are running inside an unprivileged container.\n"
        "This means that unless you manually configured your host otherwise,\n"
        "you will not have enough uids and gids to allocate to your containers.\n\n"
        "Your container's own allocation can be reused to avoid the problem.\n"
        "Doing so makes your nested containers slightly less safe as they could\n"
        "in theory attack their parent container and gain more privileges than\n"
        "they otherwise would.\n"
    )
    question = "Would you like to have your containers share their parent's allocation? (yes/no) [default=yes]: "
    if ask_bool(question, "yes"):
        preseed.profiles[0].values["config"]["security.privileged"] = "true"


def _ask_listening(preseed: Preseed) -> None:
    question = "Would you like the server to be available over the network? (yes/no) [default=no]: "
    if not ask_bool(question, "no"):
        return
    host = ask_text("Address to bind to (not including port) [default=all]: ", "all", _check_host)
    host = "::" if host == "all" else host.strip("[]")

    def check(text: str) -> None:
        try:
            port = int(text)
        except ValueError:
            raise InvalidAnswerError(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None
        if not 1 <= port <= 65535:
            raise InvalidAnswerError("out of range")
        init_checks.check_bind(host, port)

    port = int(ask_text("Port to bind to [default=8443]: ", "8443", check))
    preseed.config["core.https_address"] = join_host(host, port)


def _check_host(text: str) -> None:
    if text == "all":
        return
    try:
        normalise(f"[{text.strip('[]')}]" if ":" in text else text)
    except BadRequestError as problem:
        raise InvalidAnswerError(str(problem)) from None
