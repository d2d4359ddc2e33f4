"""Builders of the transactions that change server configuration.

Owns their SQL; ServerConfigService proposes what these return. Pure: what was read is a parameter, and a guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from incus_actors.model.transaction import Guard, Statement, Transaction


def change_server_config(
    member_id: int,
    shared: tuple[Mapping[str, str], Mapping[str, str]],
    local: tuple[Mapping[str, str], Mapping[str, str]],
    *,
    whole: bool,
) -> Transaction:
    """Go from the first to the second of each pair: `shared` cluster-wide, `local` of one member.

    Conflict "changed" if what was read has changed: all of it if `whole`, else only the keys that this changes, so that
    writers of different keys don't disturb each other.
    """
    statements: list[Statement] = []
    for key, value in _difference(*shared):
        if value is None:
            statements.append(Statement("DELETE FROM config WHERE key = ?", (key,)))
        else:
            statements.append(
                Statement(
                    "INSERT INTO config (key, value) VALUES (?, ?)"
                    " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    (key, value),
                )
            )
    for key, value in _difference(*local):
        if value is None:
            statements.append(
                Statement("DELETE FROM node_server_config WHERE node_id = ? AND key = ?", (member_id, key))
            )
        else:
            statements.append(
                Statement(
                    "INSERT INTO node_server_config (node_id, key, value) VALUES (?, ?, ?)"
                    " ON CONFLICT (node_id, key) DO UPDATE SET value = excluded.value",
                    (member_id, key, value),
                )
            )
    return Transaction(
        statements=tuple(statements),
        guards=(
            _unchanged("SELECT key, value FROM config", (), shared, whole=whole),
            _unchanged("SELECT key, value FROM node_server_config WHERE node_id = ?", (member_id,), local, whole=whole),
        ),
        topics=("config",),
    )


def _unchanged(
    query: str, params: tuple[int, ...], change: tuple[Mapping[str, str], Mapping[str, str]], *, whole: bool
) -> Guard:
    """Return a guard that holds while the rows of `query` (those that change, unless `whole`) are as they were read."""
    read = change[0]
    if whole:
        return Guard(f"{query} ORDER BY key", params, _rows(read), "changed")
    keys = tuple(key for key, _ in _difference(*change))
    joint = " AND " if params else " WHERE "
    known = {key: read[key] for key in keys if key in read}
    return Guard(
        f"{query}{joint}key IN ({', '.join('?' * len(keys))}) ORDER BY key", (*params, *keys), _rows(known), "changed"
    )


def with_member_address(transaction: Transaction, member_id: int, address: str) -> Transaction:
    """Have the same transaction tell where the member's API is from now on. Conflict "address": another has it."""
    update = Statement("UPDATE nodes SET address = ? WHERE id = ?", (address, member_id))
    free = Guard("SELECT COUNT(*) FROM nodes WHERE address = ? AND id <> ?", (address, member_id), ((0,),), "address")
    return replace(
        transaction,
        statements=(*transaction.statements, update),
        guards=(*transaction.guards, free),
        topics=(*transaction.topics, "members"),
    )


def _difference(old: Mapping[str, str], new: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Return (key, new value) of what changes, None for what goes; sorted."""
    return [(key, new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


def _rows(config: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(config.items()))
