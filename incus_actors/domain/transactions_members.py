"""Builders of the transactions that change members and cluster groups.

Owns their SQL; services/members.py and LeaderActor propose what these return. Pure: no clock, no database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from incus_actors.domain.members import MemberState
from incus_actors.domain.transactions_cluster import CERTIFICATE_SERVER, next_member_id
from incus_actors.model.transaction import Guard, Statement, Transaction


def remove_member(
    member_id: int, name: str, *, only_pending: bool = False, fence_term: int | None = None
) -> Transaction:
    """Take a member's rows and its server certificate away. Conflict "state" when `only_pending` and it isn't."""
    guards: tuple[Guard, ...] = ()
    if only_pending:
        guards = (Guard("SELECT state FROM nodes WHERE id = ?", (member_id,), ((int(MemberState.PENDING),),), "state"),)
    return Transaction(
        statements=(
            Statement("DELETE FROM nodes WHERE id = ?", (member_id,)),
            Statement("DELETE FROM certificates WHERE type = ? AND name = ?", (CERTIFICATE_SERVER, name)),
        ),
        guards=guards,
        topics=("members", "certificates", "config", "storage", "networks", "images", "instances"),
        fence_term=fence_term,
    )


#: Everything that belongs to a member by its id; tests/domain compares this with the foreign keys of the schema.
MEMBER_COLUMNS = (
    "nodes_roles.node_id",
    "nodes_config.node_id",
    "node_server_config.node_id",
    "nodes_cluster_groups.node_id",
    "instances.node_id",
    "images_nodes.node_id",
    "storage_pools_nodes.node_id",
    "storage_pools_config.node_id",
    "storage_volumes.node_id",
    "networks_nodes.node_id",
    "networks_config.node_id",
    "warnings.node_id",
    "cluster_tokens.node_id",
)


def replace_member(
    member_id: int, name: str, *, version: tuple[int, int], now: str, fence_term: int | None = None
) -> Transaction:
    """Give a member another id, because it has forgotten what it promised under the old one (CONSENSUS 3.5).

    Name, address, instances, volumes, images and settings go with it. The new id is `accepted_id(outcome)`.
    Conflict "gone" if that member is not there any more, or still joining.
    """
    new = "(SELECT value FROM counters WHERE name = 'member_id')"
    moved = tuple(column.split(".") for column in MEMBER_COLUMNS)
    return Transaction(
        statements=(
            *next_member_id(),
            # A row of its own first: the old one keeps name and address until everything has moved.
            Statement(
                "INSERT INTO nodes (id, name, description, address, schema, api_extensions, heartbeat, state, arch,"
                f" failure_domain_id) SELECT {new}, char(1) || name, description, char(1) || address, ?, ?, ?, state,"
                " arch, failure_domain_id FROM nodes WHERE id = ? ORDER BY id",
                (*version, now, member_id),
            ),
            *(
                Statement(f"UPDATE {table} SET {column} = {new} WHERE {column} = ?", (member_id,))
                for table, column in moved
            ),
            Statement("DELETE FROM nodes WHERE id = ?", (member_id,)),
            Statement(
                f"UPDATE nodes SET name = substr(name, 2), address = substr(address, 2) WHERE id = {new} RETURNING id"
            ),
        ),
        guards=(
            Guard(
                "SELECT name FROM nodes WHERE id = ? AND state <> ?",
                (member_id, int(MemberState.PENDING)),
                ((name,),),
                "gone",
            ),
        ),
        topics=("members", "certificates", "config", "storage", "networks", "images", "instances", "warnings"),
        fence_term=fence_term,
    )


def removal_guards(member_id: int) -> tuple[Guard, ...]:
    """Guards for a graceful removal: nothing is left on it ("not_empty"), and it isn't the last ("last")."""
    return (
        Guard("SELECT COUNT(*) FROM instances WHERE node_id = ?", (member_id,), ((0,),), "not_empty"),
        Guard(
            "SELECT COUNT(*) FROM storage_volumes WHERE node_id = ? AND type = 2", (member_id,), ((0,),), "not_empty"
        ),
        Guard("SELECT COUNT(*) > 1 FROM nodes WHERE state <> 1", (), ((1,),), "last"),
    )


def update_member(
    member_id: int,
    *,
    description: str,
    failure_domain: str,
    config: Mapping[str, str],
    roles: Sequence[int],
    groups: Sequence[str],
) -> Transaction:
    """Replace everything about a member that an operator can change."""
    statements = [Statement("UPDATE nodes SET description = ? WHERE id = ?", (description, member_id))]
    if failure_domain in ("", "default"):
        statements.append(Statement("UPDATE nodes SET failure_domain_id = NULL WHERE id = ?", (member_id,)))
    else:
        statements += [
            Statement(
                "INSERT INTO nodes_failure_domains (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (failure_domain,)
            ),
            Statement(
                "UPDATE nodes SET failure_domain_id = (SELECT id FROM nodes_failure_domains WHERE name = ?) WHERE id = ?",
                (failure_domain, member_id),
            ),
        ]
    statements.append(Statement("DELETE FROM nodes_config WHERE node_id = ?", (member_id,)))
    statements += [
        Statement("INSERT INTO nodes_config (node_id, key, value) VALUES (?, ?, ?)", (member_id, key, value))
        for key, value in sorted(config.items())
        if value
    ]
    statements.append(Statement("DELETE FROM nodes_roles WHERE node_id = ?", (member_id,)))
    statements += [
        Statement("INSERT INTO nodes_roles (node_id, role) VALUES (?, ?)", (member_id, role)) for role in sorted(roles)
    ]
    statements.append(Statement("DELETE FROM nodes_cluster_groups WHERE node_id = ?", (member_id,)))
    statements += [
        Statement(
            "INSERT INTO nodes_cluster_groups (node_id, group_id)"
            " VALUES (?, (SELECT id FROM cluster_groups WHERE name = ?))",
            (member_id, group),
        )
        for group in sorted(set(groups))
    ]
    guard = Guard("SELECT COUNT(*) FROM nodes WHERE id = ?", (member_id,), ((1,),), "gone")
    return Transaction(tuple(statements), (guard,), topics=("members",))


def rename_member(member_id: int, old: str, new: str) -> Transaction:
    """Give a member another name; its certificate's entry follows. Conflict "exists" or "gone"."""
    return Transaction(
        statements=(
            Statement("UPDATE nodes SET name = ? WHERE id = ?", (new, member_id)),
            Statement("UPDATE certificates SET name = ? WHERE type = ? AND name = ?", (new, CERTIFICATE_SERVER, old)),
        ),
        guards=(
            Guard("SELECT name FROM nodes WHERE id = ?", (member_id,), ((old,),), "gone"),
            Guard("SELECT COUNT(*) FROM nodes WHERE name = ?", (new,), ((0,),), "exists"),
        ),
        topics=("members", "certificates"),
    )


def create_group(name: str, description: str, members: Iterable[str]) -> Transaction:
    """Create a cluster group; a taken name is SQLite's UNIQUE error, which Incus shows as it is."""
    return Transaction(
        statements=(
            Statement("INSERT INTO cluster_groups (name, description) VALUES (?, ?)", (name, description)),
            *_group_members(name, members),
        ),
        topics=("members",),
    )


def update_group(name: str, description: str, members: Iterable[str]) -> Transaction:
    """Replace description and members. Conflict "gone"."""
    return Transaction(
        statements=(
            Statement("UPDATE cluster_groups SET description = ? WHERE name = ?", (description, name)),
            Statement(
                "DELETE FROM nodes_cluster_groups WHERE group_id = (SELECT id FROM cluster_groups WHERE name = ?)",
                (name,),
            ),
            *_group_members(name, members),
        ),
        guards=(Guard("SELECT COUNT(*) FROM cluster_groups WHERE name = ?", (name,), ((1,),), "gone"),),
        topics=("members",),
    )


def rename_group(old: str, new: str) -> Transaction:
    """Rename. Conflict "gone" or "exists"."""
    return Transaction(
        statements=(Statement("UPDATE cluster_groups SET name = ? WHERE name = ?", (new, old)),),
        guards=(
            Guard("SELECT COUNT(*) FROM cluster_groups WHERE name = ?", (old,), ((1,),), "gone"),
            Guard("SELECT COUNT(*) FROM cluster_groups WHERE name = ?", (new,), ((0,),), "exists"),
        ),
        topics=("members",),
    )


def delete_group(name: str) -> Transaction:
    """Delete an empty group. Conflict "gone" or "not_empty"."""
    in_use = "SELECT COUNT(*) FROM nodes_cluster_groups g JOIN cluster_groups c ON c.id = g.group_id WHERE c.name = ?"
    return Transaction(
        statements=(Statement("DELETE FROM cluster_groups WHERE name = ?", (name,)),),
        guards=(
            Guard("SELECT COUNT(*) FROM cluster_groups WHERE name = ?", (name,), ((1,),), "gone"),
            Guard(in_use, (name,), ((0,),), "not_empty"),
        ),
        topics=("members",),
    )


def _group_members(group: str, members: Iterable[str]) -> tuple[Statement, ...]:
    return tuple(
        Statement(
            "INSERT INTO nodes_cluster_groups (node_id, group_id) VALUES ((SELECT id FROM nodes WHERE name = ?),"
            " (SELECT id FROM cluster_groups WHERE name = ?))",
            (member, group),
        )
        for member in sorted(set(members))
    )
