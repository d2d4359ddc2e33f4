"""`admin init --discover`: the whole cluster from one terminal, as MicroCloud does it.

Owns the story: search, choose, confirm a code per server, ask once about disks and networks, then form the cluster and
tell each step. Must never give a join token to a server whose code was not confirmed.
"""

from __future__ import annotations

import os
import ssl
import time
from dataclasses import dataclass, field
from typing import Any

import click

from incus_actors.cli import asking, cluster_discovery, init_checks, joining, storage_questions, tokens
from incus_actors.cli import init_questions as questions
from incus_actors.cli.api_client import ApiClient, ApiFailureError, UnreachableError, url
from incus_actors.cli.asking import InvalidAnswerError, ask_bool, ask_text
from incus_actors.cli.discovery_client import Candidate, Pairing
from incus_actors.cli.preseed import Preseed, entry
from incus_actors.cli.preseed_apply import apply
from incus_actors.security.pairing import normal_code
from incus_actors.services.addresses import join_host, normalise, split_host_port
from incus_actors.services.local_network import local_interfaces
from incus_actors.settings import incus_directory

CODE_ATTEMPTS = 3


@dataclass(slots=True)
class Joiner:
    """A server that has been confirmed."""

    pairing: Pairing
    name: str
    facts: dict[str, Any]
    member_config: list[dict[str, str]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where the others will reach it."""
        return join_host(str(self.facts["address"]), init_checks.DEFAULT_PORT)


def form(client: ApiClient) -> None:
    """Do all of it. Raises ClickException, PreseedError, JoiningError."""
    if os.geteuid() != 0:
        raise click.ClickException("Forming a cluster requires root privileges")
    server = client.get("/1.0")
    preseed = Preseed(profiles=[entry("profiles", name="default", project="default")])
    own_name = _ask_own(server, preseed)
    own = _own_fingerprint()
    chosen = _choose(_search(server, preseed, own))
    joiners = _pair(chosen, own, own_name, _names(client) | {own_name})
    if preseed.cluster is not None:
        _ask_resources(client, server, preseed, joiners)
    else:
        _ask_member_config(client, joiners)
    names = ", ".join(joiner.name for joiner in joiners)
    click.echo(f"\nThe cluster will be: {', '.join([own_name, *(joiner.name for joiner in joiners)])}")
    if not ask_bool(f"All existing data on {names} is lost, continue? (yes/no) [default=no] ", "no"):
        raise click.ClickException("User aborted configuration")
    _form(client, preseed, own_name, joiners)


def _ask_own(server: dict[str, Any], preseed: Preseed) -> str:
    """Return this server's member name, planning its bootstrap if it is in no cluster."""
    if server["environment"].get("server_clustered"):
        return str(server["environment"]["server_name"])
    address = questions.ask_own_address(server)
    name = questions.ask_member_name()
    preseed.config["core.https_address"] = address
    preseed.cluster = entry("cluster", server_name=name, enabled=True)
    return name


def _own_fingerprint() -> str:
    try:
        pem = (incus_directory() / "server.crt").read_text()
        return joining.fingerprint(ssl.PEM_cert_to_DER_cert(pem))
    except (OSError, ValueError) as problem:
        raise click.ClickException(f"The certificate of this server can't be read: {problem}") from None


def _names(client: ApiClient) -> set[str]:
    if not client.get(url("cluster"))["enabled"]:
        return set()
    return {str(path).rpartition("/")[2] for path in client.get(url("cluster", "members"))}


# -- finding and choosing ---------------------------------------------------------------------------------------------


def _search(server: dict[str, Any], preseed: Preseed, own: str) -> list[Candidate]:
    """Look on the interface of this server's address, or on all of them if it is a name."""
    config = {**(server.get("config") or {}), **preseed.config}
    host, _ = split_host_port(str(config.get("cluster.https_address") or config.get("core.https_address") or ""))
    interfaces = local_interfaces()
    interfaces = [each for each in interfaces if host in each.addresses] or interfaces
    if not interfaces:
        cluster_discovery.usable_interfaces((), ipv4_only=False)
    where = ", ".join(each.name for each in interfaces)
    click.echo(f"Looking for servers that wait to be joined on {where} …")
    found = cluster_discovery.look(interfaces, timeout_s=cluster_discovery.DEFAULT_TIMEOUT_S, own=own)
    click.echo(cluster_discovery.shown(found.candidates, "table"))
    return found.candidates


def _choose(found: list[Candidate]) -> list[Candidate]:
    """Ask which to take."""

    def check(text: str) -> None:
        _selected(found, text)

    question = 'Which of these servers shall join? (names or addresses, "all") [default=all]: '
    return _selected(found, ask_text(question, "all", check))


def _selected(found: list[Candidate], text: str) -> list[Candidate]:
    if text == "all":
        return found
    chosen: list[Candidate] = []
    for word in text.replace(",", " ").split():
        fitting = [each for each in found if word in (each.name, each.host) or each.fingerprint.startswith(word)]
        if len(fitting) != 1:
            raise InvalidAnswerError(f'"{word}" {"names more than one" if fitting else "is not one of them"}')
        chosen += [each for each in fitting if each not in chosen]
    if not chosen:
        raise InvalidAnswerError("name at least one")
    return chosen


# -- codes ------------------------------------------------------------------------------------------------------------


def _pair(chosen: list[Candidate], own: str, own_name: str, taken: set[str]) -> list[Joiner]:
    """Confirm each server's code; return those that were. Raises ClickException."""
    joiners: list[Joiner] = []
    for candidate in chosen:
        try:
            pairing = _confirmed(candidate, own, own_name)
            facts = pairing.facts()
        except joining.JoiningError as problem:
            click.echo(f"{candidate.name} ({candidate.host}) can't be trusted: {problem}", err=True)
            if not ask_bool(f"Continue without {candidate.name}? (yes/no) [default=no]: ", "no"):
                raise click.ClickException("User aborted configuration") from None
            continue
        name = _member_name(candidate, taken)
        taken.add(name)
        joiners.append(Joiner(pairing, name, facts))
    if not joiners:
        raise click.ClickException("No server is left that could join")
    return joiners


def _confirmed(candidate: Candidate, own: str, own_name: str) -> Pairing:
    pairing = Pairing(candidate, own)
    pairing.ask(own_name)
    attempt = 1
    while True:
        try:
            pairing.confirm(_ask_code(candidate))
        except joining.RefusedError as problem:
            if attempt == CODE_ATTEMPTS:
                raise
            click.echo(f"Invalid input: {problem}\n", err=True)
            attempt += 1
        else:
            return pairing


def _ask_code(candidate: Candidate) -> str:
    def check(text: str) -> None:
        if normal_code(text) is None:
            raise InvalidAnswerError("a code looks like 7K3M-Q9XD")

    where = f"{candidate.name} ({candidate.host}, fingerprint {candidate.fingerprint[:12]})"
    return normal_code(ask_text(f"Code shown on {where}: ", check=check)) or ""


def _member_name(candidate: Candidate, taken: set[str]) -> str:
    def check(text: str) -> None:
        init_checks.check_member_name(text)
        if text in taken:
            raise InvalidAnswerError(f"The cluster already has a member with name: {text}")

    default = candidate.name if candidate.name not in taken else f"{candidate.name}-{candidate.fingerprint[:4]}"
    question = f"What member name should be used for {candidate.name} ({candidate.host})? [default={default}]: "
    return ask_text(question, default, check)


# -- disks and networks -----------------------------------------------------------------------------------------------


def _ask_resources(client: ApiClient, server: dict[str, Any], preseed: Preseed, joiners: list[Joiner]) -> None:
    """Ask once about storage, and for a disk of each server where one is needed; then about the network."""
    question = "Do you want to configure a new local storage pool? (yes/no) [default=yes]: "
    if ask_bool(question, "yes"):
        _ask_pool(client, server, preseed, joiners)
    question = "Would you like to use an existing bridge or host interface? (yes/no) [default=no]: "
    if ask_bool(question, "no"):
        _ask_interface(preseed, joiners)
    question = "Would you like stale cached images to be updated automatically? (yes/no) [default=yes]: "
    if not ask_bool(question, "yes"):
        preseed.config["images.auto_update_interval"] = "0"


def _ask_pool(client: ApiClient, server: dict[str, Any], preseed: Preseed, joiners: list[Joiner]) -> None:
    if client.find(url("storage-pools", "local")) is not None:
        raise click.ClickException('The storage pool "local" already exists')
    ours = storage_questions.drivers(server, remote=False)
    common = [each for each in ours if all(each in joiner.facts["storage_drivers"] for joiner in joiners)]
    if not common:
        raise click.ClickException("No storage backend is available on all of these servers")
    default = storage_questions.default_driver(common)
    driver = common[0]
    if len(common) > 1:
        question = f"Name of the storage backend to use ({', '.join(common)}) [default={default}]: "
        driver = asking.ask_choice(question, common, default)
    config: dict[str, str] = {}
    if driver != "dir":
        own_disks = [disk["path"] for disk in _own_disks(client)]
        assert preseed.cluster is not None
        config = _ask_place(preseed.cluster["server_name"], own_disks)
        for joiner in joiners:
            _add_keys(joiner, "local", _ask_place(joiner.name, [disk["path"] for disk in joiner.facts["disks"]]))
    preseed.storage_pools.append(entry("storage_pools", name="local", driver=driver, config=config))
    root = {"type": "disk", "path": "/", "pool": "local"}
    preseed.profiles[0].values["devices"]["root"] = root


def _own_disks(client: ApiClient) -> list[dict[str, Any]]:
    disks = client.get("/1.0/resources")["storage"]["disks"]
    return [
        {"path": f"/dev/{disk['id']}"}
        for disk in disks
        if not (disk["read_only"] or disk["removable"] or disk["partitions"])
    ]


def _ask_place(name: str, disks: list[str]) -> dict[str, str]:
    """Ask for a disk of one server, or for the size of a file."""

    def check(text: str) -> None:
        if not text.startswith("/dev/"):
            init_checks.loop_size(text)

    offered = f"{', '.join(disks)}, or " if disks else ""
    default = "10GiB"
    answer = ask_text(f"Disk of {name} to use ({offered}size of a loop file) [default={default}]: ", default, check)
    if answer.startswith("/dev/"):
        return {"source": answer}
    return {"size": f"{init_checks.loop_size(answer)}GiB"}


def _add_keys(joiner: Joiner, pool: str, keys: dict[str, str]) -> None:
    joiner.member_config += [
        {"entity": "storage-pool", "name": pool, "key": key, "value": value} for key, value in keys.items()
    ]


def _ask_interface(preseed: Preseed, joiners: list[Joiner]) -> None:
    def check(text: str) -> None:
        if not init_checks.interface_exists(text):
            raise InvalidAnswerError("The requested interface doesn't exist. Please choose another one.")
        without = [joiner.name for joiner in joiners if text not in joiner.facts["interfaces"]]
        if without:
            raise InvalidAnswerError(f"{', '.join(without)} has no such interface with an address")

    name = ask_text("Name of the existing bridge or host interface: ", check=check)
    nictype = "bridged" if init_checks.is_bridge(name) else "macvlan"
    nic = {"type": "nic", "name": "eth0", "nictype": nictype, "parent": name}
    preseed.profiles[0].values["devices"]["eth0"] = nic


def _ask_member_config(client: ApiClient, joiners: list[Joiner]) -> None:
    """A cluster that exists has its pools: ask for what each new member has for itself, once per key and server."""
    asked = client.get(url("cluster"))["member_config"] or []
    for joiner in joiners:
        for each in asked:
            question = f"Choose {each['description']} on {joiner.name}: "
            value = ask_text(question, check=lambda _answer: None)
            joiner.member_config.append({**each, "value": value})


# -- forming ----------------------------------------------------------------------------------------------------------


def _form(client: ApiClient, preseed: Preseed, own_name: str, joiners: list[Joiner]) -> None:
    """Bootstrap, then join one after the other. Raises ClickException naming the servers that did not join."""
    click.echo()
    if preseed.cluster is not None:
        begin = time.monotonic()
        apply(client, preseed)
        _step(f"{own_name} configured, the cluster is formed", begin)
    certificate = client.get("/1.0")["environment"]["certificate"]
    failed = []
    for joiner in joiners:
        begin = time.monotonic()
        try:
            _join(client, joiner, certificate)
        except (joining.JoiningError, ApiFailureError, UnreachableError) as problem:
            failed.append(joiner.name)
            click.echo(f" ✘ {joiner.name} did not join: {problem}", err=True)
        else:
            _step(f"{joiner.name} joined at {joiner.address}", begin)
    if failed:
        raise click.ClickException(f"The cluster runs without {', '.join(failed)}; run this command again for them")
    click.echo("\nThe cluster is ready: incus-actors cluster list")


def _join(client: ApiClient, joiner: Joiner, certificate: str) -> None:
    operation = client.post(url("cluster", "members"), {"server_name": joiner.name})
    token = tokens.join_token(operation)
    if token is None:
        raise joining.JoiningError("the server did not answer with a join token")
    put = {
        "server_name": joiner.name,
        "enabled": True,
        "member_config": joiner.member_config or None,
        "cluster_address": normalise(token["addresses"][0]),
        "cluster_certificate": certificate,
        "server_address": joiner.address,
        "cluster_token": tokens.encode(token),
    }
    try:
        joiner.pairing.join(put)
    except joining.JoiningError:
        _revoke(client, operation["id"])
        raise


def _revoke(client: ApiClient, operation_id: str) -> None:
    """Take an unused token back; a used one is gone already."""
    try:
        client.delete(url("operations", operation_id))
    except (ApiFailureError, UnreachableError) as problem:
        if getattr(problem, "status", 0) != 404:
            click.echo(f"The join token could not be revoked: {problem}", err=True)


def _step(text: str, begin: float) -> None:
    click.echo(f" ✔ {text:<64} {time.monotonic() - begin:6.1f} s")
