"""Reads about members, groups, tokens and what a joining server must know.

Owns the queries; services and actors call them with a Database or a snapshot of it. Must never write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from incus_actors.domain.members import ROLE_NAMES, MemberFacts, expiry_seconds
from incus_actors.state.reader import Reader

_MEMBERS = (
    "SELECT n.id, n.name, n.description, n.address, n.state, n.arch,"
    " IFNULL(d.name, 'default') AS failure_domain, n.heartbeat"
    " FROM nodes n LEFT JOIN nodes_failure_domains d ON d.id = n.failure_domain_id"
)


@dataclass(frozen=True, slots=True)
class Token:
    """One row of `cluster_tokens`. `secret` never goes into a log."""

    uuid: str
    kind: str
    name: str
    secret: str
    created_at: str
    expires_at: str | None
    member_id: int | None
    metadata: dict[str, Any]

    def __repr__(self) -> str:
        return f"Token({self.uuid}, {self.kind}, {self.name!r})"


@dataclass(frozen=True, slots=True)
class Group:
    """One cluster group."""

    name: str
    description: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The configuration keys that steer membership, with Incus' defaults."""

    offline_threshold_s: int = 20
    max_voters: int = 3
    max_standby: int = 2
    join_token_expiry: str = "3H"  # noqa: S105 - a duration


def members(db: Reader, *, pending: bool = False) -> list[MemberFacts]:
    """Return all members in order of id; those that are still joining only if `pending`."""
    where = "" if pending else " WHERE n.state <> 1"
    rows = db.query(f"{_MEMBERS}{where} ORDER BY n.id")
    roles: dict[int, list[int]] = {}
    for row in db.query("SELECT node_id, role FROM nodes_roles ORDER BY node_id, role"):
        roles.setdefault(row[0], []).append(row[1])
    config: dict[int, dict[str, str]] = {}
    for row in db.query("SELECT node_id, key, value FROM nodes_config ORDER BY node_id, key"):
        config.setdefault(row[0], {})[row[1]] = row[2]
    groups: dict[int, list[str]] = {}
    for row in db.query(
        "SELECT g.node_id, c.name FROM nodes_cluster_groups g JOIN cluster_groups c ON c.id = g.group_id"
        " ORDER BY g.node_id, c.name"
    ):
        groups.setdefault(row[0], []).append(row[1])
    return [
        MemberFacts(
            id=row["id"],
            name=row["name"],
            address=row["address"],
            description=row["description"],
            state=row["state"],
            architecture=row["arch"],
            failure_domain=row["failure_domain"],
            roles=tuple(ROLE_NAMES[role] for role in roles.get(row["id"], ()) if role in ROLE_NAMES),
            config=config.get(row["id"], {}),
            groups=tuple(groups.get(row["id"], ())),
        )
        for row in rows
    ]


def member(db: Reader, name: str, *, pending: bool = False) -> MemberFacts | None:
    """Return the member of that name."""
    return next((facts for facts in members(db, pending=pending) if facts.name == name), None)


def member_id(db: Reader, name: str) -> int | None:
    """Return the id of a full member."""
    found = db.scalar("SELECT id FROM nodes WHERE name = ? AND state <> 1", (name,))
    return None if found is None else int(found)


def member_state(db: Reader, member_id_: int) -> int | None:
    """Return `nodes.state`, or None if there is no such row."""
    found = db.scalar("SELECT state FROM nodes WHERE id = ?", (member_id_,))
    return None if found is None else int(found)


def member_address(db: Reader, member_id_: int) -> str:
    """Return "host:port" of a member's API; its id if there is no such member."""
    return str(db.scalar("SELECT address FROM nodes WHERE id = ?", (member_id_,)) or member_id_)


def known_member(db: Reader, member_id_: int) -> str | None:
    """Return a member's name, None while the database (which may have no tables yet) doesn't know it."""
    if not db.scalar("SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'nodes'"):
        return None
    found = db.scalar("SELECT name FROM nodes WHERE id = ?", (member_id_,))
    return None if found is None else str(found)


def pending_members(db: Reader) -> list[tuple[int, str, str]]:
    """Return (id, name, time of acceptance) of those whose join has not ended."""
    return [
        (row[0], row[1], row[2] or "")
        for row in db.query("SELECT id, name, heartbeat FROM nodes WHERE state = 1 ORDER BY id")
    ]


def orphan_certificates(db: Reader) -> list[str]:
    """Return fingerprints of server certificates that belong to no member."""
    return [
        row[0]
        for row in db.query(
            "SELECT fingerprint FROM certificates WHERE type = 2 AND name NOT IN (SELECT name FROM nodes) ORDER BY id"
        )
    ]


def instance_counts(db: Reader) -> dict[int, int]:
    """Return the number of instances of each member that has any."""
    return {
        row[0]: row[1] for row in db.query("SELECT node_id, COUNT(*) FROM instances GROUP BY node_id ORDER BY node_id")
    }


def instances_of(db: Reader, member_id_: int) -> list[str]:
    """Return the names of a member's instances."""
    return [row[0] for row in db.query("SELECT name FROM instances WHERE node_id = ? ORDER BY name", (member_id_,))]


def images_only_on(db: Reader, member_id_: int) -> list[str]:
    """Return the fingerprints of images of which no other member has a copy."""
    return [
        row[0]
        for row in db.query(
            "SELECT DISTINCT i.fingerprint FROM images i JOIN images_nodes m ON m.image_id = i.id AND m.node_id = ?"
            " WHERE NOT EXISTS (SELECT 1 FROM images_nodes o WHERE o.image_id = i.id AND o.node_id <> ?)"
            " ORDER BY i.fingerprint",
            (member_id_, member_id_),
        )
    ]


def custom_volumes_of(db: Reader, member_id_: int) -> list[str]:
    """Return the names of a member's custom volumes."""
    return [
        row[0]
        for row in db.query(
            "SELECT name FROM storage_volumes WHERE node_id = ? AND type = 2 ORDER BY name", (member_id_,)
        )
    ]


def groups(db: Reader) -> list[Group]:
    """Return all cluster groups in order of name, with their full members."""
    found: dict[str, tuple[str, list[str]]] = {}
    for row in db.query(
        "SELECT c.name AS name, c.description AS description, n.name AS member FROM cluster_groups c"
        " LEFT JOIN nodes_cluster_groups g ON g.group_id = c.id LEFT JOIN nodes n ON n.id = g.node_id AND n.state <> 1"
        " ORDER BY c.name, n.name"
    ):
        _, names = found.setdefault(row["name"], (row["description"], []))
        if row["member"] is not None:
            names.append(row["member"])
    return [Group(name, description, tuple(names)) for name, (description, names) in found.items()]


def tokens(db: Reader, kind: str = "join") -> list[Token]:
    """Return all tokens of a kind, oldest first."""
    return [
        Token(
            uuid=row["uuid"],
            kind=row["kind"],
            name=row["name"],
            secret=row["secret"],
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            member_id=row["node_id"],
            metadata=json.loads(row["metadata"] or "{}"),
        )
        for row in db.query("SELECT * FROM cluster_tokens WHERE kind = ? ORDER BY id", (kind,))
    ]


def pool_names(db: Reader) -> list[str]:
    """Return the names of all created pools."""
    return [row[0] for row in db.query("SELECT name FROM storage_pools WHERE state = 1 ORDER BY name")]


def pool_sources(db: Reader, member_id_: int) -> dict[str, str]:
    """Return pool → source of one member."""
    return {
        row[0]: row[1]
        for row in db.query(
            "SELECT p.name, c.value FROM storage_pools p JOIN storage_pools_config c ON c.storage_pool_id = p.id"
            " WHERE c.node_id = ? AND c.key = 'source' ORDER BY p.name",
            (member_id_,),
        )
    }


def member_config_keys(db: Reader, member_id_: int) -> list[tuple[str, str, str]]:
    """Return (entity, name, key) of every member-specific value that this member's pools and networks have."""
    found: list[tuple[str, str, str]] = []
    for entity, table in (("storage-pool", "storage_pool"), ("network", "network")):
        found += [
            (entity, row[0], row[1])
            for row in db.query(
                f"SELECT p.name, c.key FROM {table}s p JOIN {table}s_config c ON c.{table}_id = p.id"
                " WHERE c.node_id = ? AND c.key NOT LIKE 'volatile.%' ORDER BY p.name, c.key",
                (member_id_,),
            )
        ]
    return found


def settings(db: Reader) -> ClusterSettings:
    """Return the cluster's settings; a value that can't be read counts as the default."""
    given = {
        row[0]: row[1]
        for row in db.query(
            "SELECT key, value FROM config WHERE key IN"
            " ('cluster.offline_threshold', 'cluster.max_voters', 'cluster.max_standby', 'cluster.join_token_expiry')"
        )
    }
    default = ClusterSettings()
    return ClusterSettings(
        offline_threshold_s=_number(given.get("cluster.offline_threshold"), default.offline_threshold_s),
        max_voters=_number(given.get("cluster.max_voters"), default.max_voters),
        max_standby=_number(given.get("cluster.max_standby"), default.max_standby),
        join_token_expiry=given.get("cluster.join_token_expiry") or default.join_token_expiry,
    )


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else default


def token_lifetime_s(db: Reader) -> int:
    """Return how long a new join token is valid. Raises BadRequestError for a bad expression."""
    return expiry_seconds(settings(db).join_token_expiry) or 3 * 3600
