"""`incus-actors config trust`: who may talk to the server.

Owns the trust store and its tokens on the command line, with the stock client's texts and tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from incus_actors.cli import asking, output, remotes, shapes, tokens
from incus_actors.cli.api_client import url
from incus_actors.cli.base import ClientCommand, ClientGroup, flags, named_server, on_server, remote_of, server
from incus_actors.cli.output import FORMAT_HELP

_FINGERPRINT = "Missing certificate fingerprint"
_WRITABLE = ("name", "type", "restricted", "projects", "certificate", "description")

_TEMPLATE = """### This is a YAML representation of the certificate.
### Any line starting with a '# will be ignored.

"""


@click.group(cls=ClientGroup, aliases={"ls": "list", "rm": "remove"})
def trust() -> None:
    """Manage trusted clients."""


def _projects(text: str) -> list[str] | None:
    return text.split(",") if text else None


# -- looking ----------------------------------------------------------------------------------------------------------


def _moment(when: Any) -> str:
    return str(when.astimezone().strftime("%Y/%m/%d %H:%M %Z"))


def _parsed(entry: dict[str, Any]) -> Any:
    from cryptography.x509 import load_pem_x509_certificate

    try:
        return load_pem_x509_certificate(entry["certificate"].encode())
    except ValueError:
        raise click.ClickException(f"Invalid certificate of {entry['name'] or entry['fingerprint'][:12]}") from None


def _common_name(entry: dict[str, Any]) -> str:
    from cryptography.x509.oid import NameOID

    names = _parsed(entry).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


_COLUMNS: output.Columns = {
    "n": ("NAME", lambda c: c["name"]),
    "t": ("TYPE", lambda c: c["type"]),
    "c": ("COMMON NAME", _common_name),
    "f": ("FINGERPRINT", lambda c: c["fingerprint"][:12]),
    "d": ("DESCRIPTION", lambda c: c["description"]),
    "i": ("ISSUE DATE", lambda c: _moment(_parsed(c).not_valid_before_utc)),
    "e": ("EXPIRY DATE", lambda c: _moment(_parsed(c).not_valid_after_utc)),
    "r": ("RESTRICTED", lambda c: "yes" if c["restricted"] else "no"),
    "p": ("PROJECTS", lambda c: "\n".join(sorted(c["projects"]))),
}


@trust.command(cls=ClientCommand, name="list")
@click.argument("remote", default="", metavar="[<remote>:]")
@click.option("-c", "--columns", default="ntdfe", show_default=True, help="Columns")
@click.option("-f", "--format", "text_format", default="table", show_default=True, help=FORMAT_HELP)
def list_(remote: str, columns: str, text_format: str) -> None:
    """List trusted clients.

    Columns: n name, t type, c common name, f fingerprint, d description, i issue date, e expiry date,
    r restricted, p projects.
    """
    output.check_format(text_format)
    output.chosen(_COLUMNS, columns)
    entries = server(remote_of(remote)).get(url("certificates", recursion="1"))
    output.echo(output.listing(text_format, _COLUMNS, columns, [shapes.certificate(each) for each in entries]))


@trust.command(cls=ClientCommand)
@click.argument("fingerprint", metavar="[<remote>:]<fingerprint>")
def show(fingerprint: str) -> None:
    """Show trust configurations."""
    from incus_actors.cli.yaml_text import dump

    client, name = on_server(fingerprint, _FINGERPRINT)
    click.echo(dump(shapes.certificate(client.get(url("certificates", name)))), nl=False)


# -- letting in -------------------------------------------------------------------------------------------------------


def _post(**given: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": "",
        "type": "client",
        "restricted": False,
        "projects": None,
        "certificate": "",
        "description": "",
        "trust_token": "",
        "token": False,
    }
    return {**body, **given}


@trust.command(cls=ClientCommand)
@click.argument("client_name", metavar="[<remote>:]<name>")
@click.option("--projects", default="", help="List of projects to restrict the certificate to")
@click.option("--restricted", is_flag=True, help="Restrict the certificate to one or more projects")
def add(client_name: str, projects: str, restricted: bool) -> None:
    """Add new trusted client.

    This will issue a trust token to be used by the client to add itself to the trust store.
    """
    wanted, name = remotes.split(client_name)
    if not name:
        raise click.ClickException("A client name must be provided")
    body = _post(name=name, restricted=restricted, projects=_projects(projects), token=True)
    token = tokens.trust_token(server(wanted).post(url("certificates"), body))
    if token is None:
        raise click.ClickException("the server did not answer with a token")
    if not flags().quiet:
        click.echo(f"Client {name} certificate add token:")
    click.echo(tokens.encode(token))


@trust.command(cls=ClientCommand, name="add-certificate")
@click.argument("arguments", nargs=-1, required=True, metavar="[<remote>:] <cert>")
@click.option("--description", default="", help="Certificate description")
@click.option("--name", default="", help="Alternative certificate name")
@click.option("--projects", default="", help="List of projects to restrict the certificate to")
@click.option("--restricted", is_flag=True, help="Restrict the certificate to one or more projects")
@click.option("--type", "kind", default="client", show_default=True, help="Type of certificate: client or metrics")
def add_certificate(
    arguments: tuple[str, ...], description: str, name: str, projects: str, restricted: bool, kind: str
) -> None:
    """Add new trusted client certificate."""
    if len(arguments) > 2:
        raise click.ClickException("Invalid number of arguments")
    if kind not in ("client", "metrics"):
        raise click.ClickException(f'Unknown certificate type "{kind}"')
    file = Path(arguments[-1])
    if not file.exists():
        raise click.ClickException(f"Provided certificate path doesn't exist: {file}")
    body = _post(
        name=name or file.name,
        type=kind,
        restricted=restricted,
        projects=_projects(projects),
        certificate=_base64_der(file),
        description=description,
    )
    server(remote_of(arguments[0]) if len(arguments) == 2 else "").post(url("certificates"), body)


def _base64_der(file: Path) -> str:
    import base64
    import ssl

    try:
        text = file.read_text()
        begin = text.index(ssl.PEM_HEADER)
        end = text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(text[begin:end])
    except (OSError, ValueError):
        raise click.ClickException("Invalid certificate file") from None
    return base64.b64encode(der).decode()


# -- changing ---------------------------------------------------------------------------------------------------------


@trust.command(cls=ClientCommand)
@click.argument("fingerprint", metavar="[<remote>:]<fingerprint>")
def edit(fingerprint: str) -> None:
    """Edit trust configurations: from YAML on the standard input, or with an editor on a terminal."""
    from incus_actors.cli.yaml_text import dump

    client, name = on_server(fingerprint, _FINGERPRINT)
    place = url("certificates", name)
    text = asking.input_text()
    if text is not None:
        client.put(place, _writable(text))
        return
    found, etag = client.get_with_etag(place)
    shown = shapes.certificate(found)

    def accept(edited: str) -> None:
        client.put(place, _writable(edited), etag=etag)

    asking.edit_until_accepted(_TEMPLATE + dump({key: shown[key] for key in _WRITABLE}), accept)


def _writable(text: str) -> dict[str, Any]:
    from incus_actors.cli.key_values import as_text, read_yaml

    read = read_yaml(text)
    put: dict[str, Any] = {key: as_text(read.get(key), key) for key in ("name", "type", "certificate", "description")}
    if not isinstance(read.get("restricted", False), bool):
        raise click.ClickException('yaml: "restricted" is neither true nor false')
    projects = read.get("projects") or []
    if not isinstance(projects, list):
        raise click.ClickException('yaml: "projects" is not a list')
    put["restricted"] = read.get("restricted", False)
    put["projects"] = [as_text(each, "projects") for each in projects]
    return {key: put[key] for key in _WRITABLE}


@trust.command(cls=ClientCommand)
@click.argument("fingerprint", metavar="[<remote>:]<fingerprint>")
def remove(fingerprint: str) -> None:
    """Remove trusted client."""
    client, name = on_server(fingerprint, _FINGERPRINT)
    client.delete(url("certificates", name))


# -- tokens -----------------------------------------------------------------------------------------------------------


@trust.command(cls=ClientCommand, name="list-tokens")
@click.argument("remote", default="", metavar="[<remote>:]")
@click.option("-c", "--columns", default="ntE", show_default=True, help="Columns: n name, t token, E expires at")
@click.option("-f", "--format", "text_format", default="table", show_default=True, help=FORMAT_HELP)
def list_tokens(remote: str, columns: str, text_format: str) -> None:
    """List all active certificate add tokens."""
    name, _ = output.check_format(text_format)
    known = tokens.columns("client_name")
    output.chosen(known, columns)
    found = [t for t in map(tokens.trust_token, tokens.live(server(remote_of(remote)))) if t is not None]
    raw = [tokens.for_yaml(token) for token in found] if name == "yaml" else found
    output.echo(output.listing(text_format, known, columns, found, raw))


@trust.command(cls=ClientCommand, name="revoke-token")
@click.argument("client_name", metavar="[<remote>:]<name>")
def revoke_token(client_name: str) -> None:
    """Revoke certificate add token."""
    wanted, name = remotes.split(client_name)
    remote, client = named_server(wanted)
    for operation in tokens.live(client):
        token = tokens.trust_token(operation)
        if token is not None and token["client_name"] == name:
            client.delete(url("operations", operation["id"]))
            if not flags().quiet:
                click.echo(f"Certificate add token for {name} deleted")
            return
    raise click.ClickException(f"No certificate add token for member {name} on remote: {remote}")
