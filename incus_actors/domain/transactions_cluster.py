"""Builders of the transactions that form a cluster.

Owns the SQL of bootstrap, join and tokens (members and groups: transactions_members.py); services and LeaderActor propose what these return.
Pure: ids come from the database, times and secrets are parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from incus_actors.domain.members import MemberState
from incus_actors.model.cluster import MemberConfigKey
from incus_actors.model.config_keys import LOCAL_NETWORK_KEYS, LOCAL_POOL_KEYS
from incus_actors.model.transaction import Guard, Outcome, Statement, Transaction, Value

CERTIFICATE_SERVER = 2  #: certificates.type
TOKEN_JOIN = "join"  # noqa: S105 - a kind, not a secret
POOL_CREATED = 1  #: storage_pools.state and storage_pools_nodes.state


@dataclass(frozen=True, slots=True)
class TrustedServer:
    """A server certificate for the trust store."""

    name: str
    fingerprint: str
    pem: str


def _set_server_config(member: str, parameters: tuple[Value, ...], key: str, value: str) -> Statement:
    return Statement(
        f"INSERT INTO node_server_config (node_id, key, value) VALUES ({member}, ?, ?)"
        " ON CONFLICT (node_id, key) DO UPDATE SET value = excluded.value",
        (*parameters, key, value),
    )


def set_server_config(member_id: int, values: Mapping[str, str]) -> Transaction:
    """Set keys that belong to one member."""
    return Transaction(
        statements=tuple(_set_server_config("?", (member_id,), key, values[key]) for key in sorted(values)),
        topics=("config",),
    )


def _trust(server: TrustedServer) -> tuple[Statement, Statement]:
    return (
        Statement("DELETE FROM certificates WHERE fingerprint = ?", (server.fingerprint,)),
        Statement(
            "INSERT INTO certificates (fingerprint, type, name, certificate, restricted) VALUES (?, ?, ?, ?, 0)",
            (server.fingerprint, CERTIFICATE_SERVER, server.name, server.pem),
        ),
    )


def bootstrap(member_id: int, name: str, address: str, server: TrustedServer) -> Transaction:
    """Turn the standalone server into the first member. Conflict "clustered" if it is one already."""
    return Transaction(
        statements=(
            Statement("UPDATE nodes SET name = ?, address = ? WHERE id = ?", (name, address, member_id)),
            *_trust(server),
            Statement(
                "INSERT INTO cluster_groups (name, description) VALUES ('default', 'Default cluster group')"
                " ON CONFLICT DO NOTHING"
            ),
            Statement(
                "INSERT INTO nodes_cluster_groups (node_id, group_id)"
                " VALUES (?, (SELECT id FROM cluster_groups WHERE name = 'default')) ON CONFLICT DO NOTHING",
                (member_id,),
            ),
            _set_server_config("?", (member_id,), "cluster.https_address", address),
        ),
        guards=(
            Guard("SELECT COUNT(*) FROM nodes", (), ((1,),), "clustered"),
            Guard("SELECT address FROM nodes WHERE id = ?", (member_id,), (("0.0.0.0",),), "clustered"),  # noqa: S104
        ),
        topics=("members", "certificates", "config"),
    )


def undo_bootstrap(member_id: int, fingerprint: str) -> Transaction:
    """Make a server that could not finish its bootstrap standalone again."""
    return Transaction(
        statements=(
            Statement("UPDATE nodes SET name = 'none', address = '0.0.0.0' WHERE id = ?", (member_id,)),
            Statement("DELETE FROM certificates WHERE fingerprint = ? AND type = ?", (fingerprint, CERTIFICATE_SERVER)),
        ),
        guards=(Guard("SELECT COUNT(*) FROM nodes", (), ((1,),), "members"),),
        topics=("members", "certificates", "config"),
    )


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A server that asks to be accepted."""

    server: TrustedServer
    address: str
    architecture: int
    schema: int
    api_extensions: int
    storage_root: str
    core_address: str = ""  #: its core.https_address, if that is not `address`
    member_config: tuple[MemberConfigKey, ...] = ()


def accept(
    newcomer: Newcomer,
    *,
    token_uuid: str | None,
    pools: Iterable[str],
    now: str,
    fence_term: int | None = None,
) -> Transaction:
    """Add a pending member with its certificate, and use up its token, all at once.

    A pending member of the same name or address (a join that never ended) is replaced. The new id is
    `accepted_id(outcome)`. Conflicts: "token" (used meanwhile), "name", "address". `token_uuid` None: the
    server's certificate is in the trust store already.
    """
    name, address = newcomer.server.name, newcomer.address
    created = int(MemberState.CREATED)
    pending = int(MemberState.PENDING)
    guards = [
        Guard("SELECT COUNT(*) FROM nodes WHERE name = ? AND state <> ?", (name, pending), ((0,),), "name"),
        Guard("SELECT COUNT(*) FROM nodes WHERE address = ? AND state <> ?", (address, pending), ((0,),), "address"),
        Guard("SELECT COUNT(*) FROM nodes WHERE name = 'none' AND state = ?", (created,), ((0,),), "standalone"),
    ]
    statements = [
        Statement("DELETE FROM nodes WHERE state = ? AND (name = ? OR address = ?)", (pending, name, address)),
        Statement("DELETE FROM certificates WHERE type = ? AND name = ?", (CERTIFICATE_SERVER, name)),
        *_trust(newcomer.server),
    ]
    if token_uuid is None:
        guards.append(
            Guard(
                "SELECT name FROM certificates WHERE fingerprint = ? AND type = ?",
                (newcomer.server.fingerprint, CERTIFICATE_SERVER),
                ((name,),),
                "token",
            )
        )
    else:
        guards.append(Guard("SELECT COUNT(*) FROM cluster_tokens WHERE uuid = ?", (token_uuid,), ((1,),), "token"))
        statements.append(Statement("DELETE FROM cluster_tokens WHERE uuid = ?", (token_uuid,)))
    statements += next_member_id()
    statements.append(
        Statement(
            "INSERT INTO nodes (id, name, description, address, schema, api_extensions, heartbeat, state, arch)"
            " VALUES ((SELECT value FROM counters WHERE name = 'member_id'), ?, '', ?, ?, ?, ?, ?, ?) RETURNING id",
            (name, address, newcomer.schema, newcomer.api_extensions, now, pending, newcomer.architecture),
        )
    )
    statements += _member_rows(newcomer, pools)
    return Transaction(
        statements=tuple(statements),
        guards=tuple(guards),
        topics=("members", "certificates", "config", "tokens", "storage", "networks"),
        fence_term=fence_term,
    )


def accepted_id(outcome: Outcome) -> int:
    """Return the id that an applied `accept` gave out: the only row that any of its statements returns."""
    return int(str(next(rows[0][0] for rows in outcome.rows if rows)))


def next_member_id() -> list[Statement]:
    """Statements after which counters.member_id is an id that no member ever had."""
    return [
        Statement(
            "INSERT INTO counters (name, value) VALUES ('member_id', (SELECT MAX(id) FROM nodes))"
            " ON CONFLICT (name) DO NOTHING"
        ),
        Statement("UPDATE counters SET value = value + 1 WHERE name = 'member_id'"),
    ]


def _member_rows(newcomer: Newcomer, pools: Iterable[str]) -> list[Statement]:
    """Group, addresses, and its share of every pool and network."""
    name = newcomer.server.name
    member = "(SELECT id FROM nodes WHERE name = ?)"
    rows = [
        Statement(
            f"INSERT INTO nodes_cluster_groups (node_id, group_id)"
            f" VALUES ({member}, (SELECT id FROM cluster_groups WHERE name = 'default'))",
            (name,),
        ),
        _set_server_config(member, (name,), "cluster.https_address", newcomer.address),
        _set_server_config(member, (name,), "core.https_address", newcomer.core_address or newcomer.address),
        Statement(
            f"INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state)"
            f" SELECT id, {member}, ? FROM storage_pools WHERE state = ? ORDER BY id",
            (name, POOL_CREATED, POOL_CREATED),
        ),
        Statement(
            f"INSERT INTO networks_nodes (network_id, node_id, state)"
            f" SELECT id, {member}, ? FROM networks WHERE state = ? ORDER BY id",
            (name, POOL_CREATED, POOL_CREATED),
        ),
    ]
    given = {
        (entry.name, entry.key): entry.value
        for entry in newcomer.member_config
        if entry.entity == "storage-pool" and entry.key in LOCAL_POOL_KEYS and entry.value
    }
    for pool in sorted(pools):
        given.setdefault((pool, "source"), f"{newcomer.storage_root}/{pool}")
    for (pool, key), value in sorted(given.items()):
        rows.append(_member_value("storage_pool", member, (name, pool, key, value)))
    rows += [
        _member_value("network", member, (name, entry.name, entry.key, entry.value))
        for entry in newcomer.member_config
        if entry.entity == "network" and entry.key in LOCAL_NETWORK_KEYS and entry.value
    ]
    return rows


def _member_value(kind: str, member: str, parameters: tuple[str, str, str, str]) -> Statement:
    """One member-specific value of a pool or network; an unknown pool gives no row, as in Incus."""
    name, entity, key, value = parameters
    return Statement(
        f"INSERT INTO {kind}s_config ({kind}_id, node_id, key, value)"
        f" SELECT id, {member}, ?, ? FROM {kind}s WHERE name = ? ORDER BY id",
        (name, key, value, entity),
    )


def created(member_id: int, *, version: tuple[int, int] | None = None) -> Transaction:
    """The joining server is ready: it is a member from now on. Conflict "gone" if its row was taken away."""
    pending, full = int(MemberState.PENDING), int(MemberState.CREATED)
    statements = [Statement("UPDATE nodes SET state = ? WHERE id = ? AND state = ?", (full, member_id, pending))]
    if version is not None:
        statements.append(
            Statement("UPDATE nodes SET schema = ?, api_extensions = ? WHERE id = ?", (*version, member_id))
        )
    return Transaction(
        statements=tuple(statements),
        guards=(Guard("SELECT COUNT(*) FROM nodes WHERE id = ?", (member_id,), ((1,),), "gone"),),
        topics=("members",),
    )


# -- tokens -----------------------------------------------------------------------------------------------------


def add_join_token(
    uuid: str, name: str, secret: str, created_at: str, expires_at: str, member_id: int, metadata: str
) -> Transaction:
    """Store a token; an older one for the same name goes. Conflict "exists" if a member has that name."""
    return Transaction(
        statements=(
            Statement("DELETE FROM cluster_tokens WHERE kind = ? AND name = ?", (TOKEN_JOIN, name)),
            Statement(
                "INSERT INTO cluster_tokens (uuid, kind, name, secret, created_at, expires_at, node_id, request, metadata)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, '{}', ?)",
                (uuid, TOKEN_JOIN, name, secret, created_at, expires_at, member_id, metadata),
            ),
        ),
        guards=(
            Guard(
                "SELECT COUNT(*) FROM nodes WHERE name = ? AND state <> ?",
                (name, int(MemberState.PENDING)),
                ((0,),),
                "exists",
            ),
        ),
        topics=("tokens",),
    )


def delete_tokens(uuids: Sequence[str], *, fence_term: int | None = None) -> Transaction:
    """Revoke or expire tokens; those that are gone already don't matter (`changed` counts)."""
    return Transaction(
        statements=tuple(Statement("DELETE FROM cluster_tokens WHERE uuid = ?", (uuid,)) for uuid in uuids),
        topics=("tokens",),
        fence_term=fence_term,
    )


def use_token_for_certificate(uuid: str, server: TrustedServer) -> Transaction:
    """Trust a joining server's certificate and use up its token (interactive join). Conflict "token", "name"."""
    return Transaction(
        statements=(
            Statement("DELETE FROM cluster_tokens WHERE uuid = ?", (uuid,)),
            Statement("DELETE FROM certificates WHERE type = ? AND name = ?", (CERTIFICATE_SERVER, server.name)),
            *_trust(server),
        ),
        guards=(
            Guard("SELECT COUNT(*) FROM cluster_tokens WHERE uuid = ?", (uuid,), ((1,),), "token"),
            Guard(
                "SELECT COUNT(*) FROM nodes WHERE name = ? AND state <> ?",
                (server.name, int(MemberState.PENDING)),
                ((0,),),
                "name",
            ),
        ),
        topics=("tokens", "certificates"),
    )


def forget_certificates(fingerprints: Sequence[str], *, fence_term: int | None = None) -> Transaction:
    """Drop server certificates that no member has (a join that never came after its token was used)."""
    return Transaction(
        statements=tuple(
            Statement(
                "DELETE FROM certificates WHERE fingerprint = ? AND type = ?"
                " AND NOT EXISTS (SELECT 1 FROM nodes WHERE nodes.name = certificates.name)",
                (fingerprint, CERTIFICATE_SERVER),
            )
            for fingerprint in fingerprints
        ),
        topics=("certificates",),
        fence_term=fence_term,
    )
