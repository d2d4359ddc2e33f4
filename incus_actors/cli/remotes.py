"""Which server a command talks to: this machine's daemon, or a remote that the stock client knows.

Owns reading the stock client's configuration (`$INCUS_CONF` or ~/.config/incus: config.yml, client.crt, servercerts/).
It writes there only when a remote's certificate was changed through it. Called by base.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from incus_actors.cli.api_client import ApiClient, tls_client, unix_client
from incus_actors.settings import incus_directory


def socket_path() -> Path:
    """Return where this machine's daemon listens: `$INCUS_SOCKET`, or in `$INCUS_DIR`."""
    given = os.environ.get("INCUS_SOCKET")
    return Path(given) if given else incus_directory() / "unix.socket"


def configuration_directory() -> Path:
    """Return the stock client's own directory."""
    return Path(os.environ.get("INCUS_CONF") or Path.home() / ".config" / "incus")


def _configuration() -> dict[str, Any]:
    file = configuration_directory() / "config.yml"
    if not file.exists():
        return {}
    import yaml

    try:
        read = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as problem:
        raise click.ClickException(f"Unable to read the configuration: {problem}") from None
    return read if isinstance(read, dict) else {}


def split(text: str) -> tuple[str, str]:
    """Return (remote, rest) of "[<remote>:]rest"; the remote is "" when none is named."""
    remote, colon, rest = text.partition(":")
    return (remote, rest) if colon else ("", text)


def connect(remote: str, *, force_local: bool = False) -> tuple[str, ApiClient]:
    """Return (name of the remote, its client). Raises ClickException: no such remote, nobody there."""
    settings: dict[str, Any] = {}
    if remote not in ("", "local") or (not remote and not force_local):
        settings = _configuration()
    name = remote or ("local" if force_local else os.environ.get("INCUS_REMOTE", "")) or settings.get("default-remote")
    name = str(name or "local")
    known = (settings.get("remotes") or {}).get(name)
    if known is None and name != "local":
        raise click.ClickException(f'The remote "{name}" doesn\'t exist')
    address = str(known["addr"]) if known is not None else "unix://"
    if address.startswith("unix:"):
        return name, _local(address)
    if (known or {}).get("protocol") == "simplestreams":
        raise click.ClickException("The remote isn't a private server")
    client = _https(name, address)
    client.project = str((known or {}).get("project") or "")
    return name, client


def _local(address: str) -> ApiClient:
    given = address.removeprefix("unix:").removeprefix("//")
    path = Path(given) if given else socket_path()
    if not path.exists():
        raise click.ClickException(f"The incus daemon doesn't appear to be started (socket path: {path})")
    return unix_client(path)


def _https(name: str, address: str) -> ApiClient:
    import ssl

    directory = configuration_directory()
    certificate = (directory / "client.crt", directory / "client.key")
    pinned = directory / "servercerts" / f"{name}.crt"
    expected = ssl.PEM_cert_to_DER_cert(pinned.read_text()) if pinned.exists() else None
    place = address.removeprefix("https://").rstrip("/")
    if ":" not in place.rpartition("]")[2]:
        place += ":443"
    return tls_client(place, expected_der=expected, certificate=certificate if certificate[0].exists() else None)


def keep_certificate(name: str, pem: str) -> None:
    """Pin a remote's new certificate, if one was pinned before."""
    pinned = configuration_directory() / "servercerts" / f"{name}.crt"
    if pinned.exists():
        pinned.write_text(pem)
