"""The YAML of `cluster show` and `cluster edit`: members with id, name, address and role, in Incus' words.

Owns reading, writing and what an edit may change (CONTRACT 17); used by admin_cluster.py. Pure: no files, no questions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from incus_actors.consensus.types import Member, Role
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.transport.address import AddressError, control_address, format_address, parse_address

ROLES = {Role.VOTER: "voter", Role.STANDBY: "stand-by", Role.SPARE: "spare"}
ROLE_OF = {word: role for role, word in ROLES.items()}


class DocumentError(Exception):
    """What was written can't be done; the text is what the operator reads."""


@dataclass(frozen=True, slots=True)
class Row:
    """One member as the document has it."""

    id: int
    name: str
    address: str
    role: str


def rows_of(members: tuple[Member, ...], names: dict[int, tuple[str, str]]) -> list[Row]:
    """Return the rows of a configuration; who has no row in the tables is called by its transport address."""
    rows = []
    for member in members:
        name, address = names.get(member.id, (f"member-{member.id}", control_address(member.address)))
        rows.append(Row(member.id, name, address, ROLES[member.role]))
    return rows


def render(rows: list[Row]) -> str:
    """Return the document."""
    import yaml

    members = [{"id": r.id, "name": r.name, "address": r.address, "role": r.role} for r in rows]
    text: str = yaml.safe_dump({"members": members}, sort_keys=False, default_flow_style=False)
    return text


def parse(text: str) -> list[Row]:
    """Return the rows of a document. Raises DocumentError."""
    import yaml

    try:
        document: Any = yaml.safe_load(text)
        entries = document["members"]
        return [Row(int(e["id"]), str(e.get("name") or ""), str(e["address"]), str(e["role"])) for e in entries]
    except KeyError as error:
        raise DocumentError(f"Invalid YAML: {error} is missing") from error
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise DocumentError(f"Invalid YAML: {error}") from error


def check_edit(before: list[Row], after: list[Row]) -> None:
    """Raise DocumentError for a change that an edit can't make, in Incus' order. Without a name it stays as it is."""
    for new in after:
        if new.role not in ROLE_OF:
            raise DocumentError(f'unknown raft role: "{new.role}" (voter, stand-by, spare)')
    if len(after) < len(before):
        raise DocumentError("Removing cluster members is not supported")
    if len(after) > len(before):
        raise DocumentError("Adding cluster members is not supported")
    voters = 0
    for old, new in zip(before, after, strict=True):
        if old.id != new.id:
            raise DocumentError("Changing cluster member ID is not supported")
        if new.name and old.name != new.name:
            raise DocumentError("Changing cluster member name is not supported")
        if old.role == "spare" and new.role == "voter":
            raise DocumentError('A "spare" cluster member cannot become a "voter"')
        _split(new.address)
        voters += new.role == "voter"
    if voters < 2 and len(after) > 2:
        raise DocumentError('Number of "voter" must be 2 or more')
    if voters < 1:
        raise DocumentError('At least one member must be a "voter"')
    if len({row.address for row in after}) != len(after):
        raise DocumentError("Two members can't have one address")


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise DocumentError(f'Invalid address "{address}": host:port is needed')
    return host.removeprefix("[").removesuffix("]"), int(port)


def edited_members(members: tuple[Member, ...], before: list[Row], after: list[Row]) -> tuple[Member, ...]:
    """Return the members with the roles and hosts of `after`: ports and keys of the transport stay.

    Raises DocumentError for a host that the transport can't dial.
    """
    edited = []
    for member, old, new in zip(members, before, after, strict=True):
        address = member.address
        host = _split(new.address)[0]
        if old.address != new.address and host != _split(old.address)[0]:
            try:
                address = format_address(replace(parse_address(address), host=host))
            except AddressError as error:
                raise DocumentError(f'Invalid address "{new.address}": {error}') from error
        edited.append(replace(member, role=ROLE_OF[new.role], address=address))
    return tuple(edited)


def renames(before: list[Row], after: list[Row]) -> Transaction | None:
    """Return what brings the tables to the new addresses; None if none has changed."""
    statements: list[Statement] = []
    for old, new in zip(before, after, strict=True):
        if old.address == new.address:
            continue
        statements.append(Statement("UPDATE nodes SET address = ? WHERE id = ?", (new.address, new.id)))
        statements.append(
            Statement(
                "UPDATE node_server_config SET value = ?"
                " WHERE node_id = ? AND key IN ('cluster.https_address', 'core.https_address') AND value = ?",
                (new.address, new.id, old.address),
            )
        )
    return Transaction(tuple(statements), topics=("members", "config")) if statements else None
