"""Builders of the transactions that change networks: rows first, then the work on the machines, then the state.

Owns their SQL; NetworkService and NetworkActor propose what these return. Pure. Every step can be repeated after a
crash: `networks_nodes.state` says what each member still has to do.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_actors.model.transaction import Guard, Statement, Transaction, Value

#: State of networks and networks_nodes. The first three are Incus'. The others are ours, and of members only: make
#: your share; remove it and your row; remove it and wait for another try.
PENDING, CREATED, ERRORED, CREATING, DELETING, UNDOING = range(6)
#: A member's own key of a network: why it could not do its share. Never shown as config.
ERROR_KEY = "volatile.actors.error"
#: A key of all members: the network was made by one command, so a failure leaves no row.
ONE_STEP_KEY = "volatile.actors.one_step"
HIDDEN_PREFIX = "volatile.actors."

_ID = "(SELECT id FROM networks WHERE name = ? AND project_id = 1)"
_TOPICS = ("networks",)
_ADDRESSES = (
    "SELECT network_id, key, value FROM networks_config WHERE key IN ('ipv4.address', 'ipv6.address')"
    " AND node_id IS NULL ORDER BY network_id, key"
)
_LOCAL = "INSERT INTO networks_config (network_id, node_id, key, value) VALUES "

Rows = tuple[tuple[Value, ...], ...]


def addresses_guard(seen: Rows) -> Guard:
    """Nobody has taken or given back an address since `seen` (rows of `ADDRESSES_SQL`). Label "changed"."""
    return Guard(_ADDRESSES, (), seen, "changed")


ADDRESSES_SQL = _ADDRESSES


def _new(name: str, kind: int, description: str) -> Statement:
    return Statement(
        "INSERT INTO networks (project_id, name, description, state, type) VALUES (1, ?, ?, ?, ?)",
        (name, description, PENDING, kind),
    )


def _own(name: str, member_id: int, config: Mapping[str, str]) -> list[Statement]:
    return [Statement(f"{_LOCAL}({_ID}, ?, ?, ?)", (name, member_id, k, v)) for k, v in sorted(config.items())]


def _shared(name: str, config: Mapping[str, str]) -> list[Statement]:
    return [Statement(f"{_LOCAL}({_ID}, NULL, ?, ?)", (name, k, v)) for k, v in sorted(config.items())]


def define_network(
    name: str,
    kind: int,
    description: str,
    shared: Mapping[str, str],
    local: Mapping[int, Mapping[str, str]],
    addresses: Rows,
) -> Transaction:
    """Write down a network that all members (the keys of `local`) are to make now, in one step.

    A taken name is SQLite's UNIQUE error. Conflicts "members" (they are others by now), "changed" (addresses).
    """
    statements = [_new(name, kind, description), *_shared(name, {**shared, ONE_STEP_KEY: "true"})]
    for member_id, own in sorted(local.items()):
        statements.append(
            Statement(
                f"INSERT INTO networks_nodes (network_id, node_id, state) VALUES ({_ID}, ?, ?)",
                (name, member_id, CREATING),
            )
        )
        statements += _own(name, member_id, own)
    members = Guard(
        "SELECT id FROM nodes ORDER BY id", (), tuple((member_id,) for member_id in sorted(local)), "members"
    )
    return Transaction(tuple(statements), (members, addresses_guard(addresses)), _TOPICS)


def define_on_member(name: str, kind: int, description: str, member_id: int, local: Mapping[str, str]) -> Transaction:
    """First phase in a cluster: the network is to be on this member too. Conflicts "member", "state" (it is past
    that), "exists", "type"."""
    on_member = (
        "SELECT COUNT(*) FROM networks_nodes n JOIN networks w ON w.id = n.network_id"
        " WHERE w.name = ? AND w.project_id = 1 AND n.node_id = ?"
    )
    same = "SELECT COUNT(*) FROM networks WHERE name = ? AND project_id = 1 AND"
    return Transaction(
        statements=(
            Statement(
                "INSERT INTO networks (project_id, name, description, state, type) VALUES (1, ?, ?, ?, ?)"
                " ON CONFLICT (project_id, name) DO NOTHING",
                (name, description, PENDING, kind),
            ),
            Statement(
                f"INSERT INTO networks_nodes (network_id, node_id, state) VALUES ({_ID}, ?, ?)",
                (name, member_id, PENDING),
            ),
            *_own(name, member_id, local),
        ),
        guards=(
            Guard("SELECT COUNT(*) FROM nodes WHERE id = ?", (member_id,), ((1,),), "member"),
            Guard(f"{same} state <> ?", (name, PENDING), ((0,),), "state"),
            Guard(f"{same} type <> ?", (name, kind), ((0,),), "type"),
            Guard(on_member, (name, member_id), ((0,),), "exists"),
        ),
        topics=_TOPICS,
    )


def begin(network_id: int, name: str, description: str, shared: Mapping[str, str], addresses: Rows) -> Transaction:
    """Second phase in a cluster: what is the same on every member, and let them begin. Conflicts "created",
    "changed" (addresses)."""
    return Transaction(
        statements=(
            Statement("DELETE FROM networks_config WHERE network_id = ? AND key = ?", (network_id, ERROR_KEY)),
            Statement(
                "UPDATE networks_nodes SET state = ? WHERE network_id = ? AND state <> ?",
                (CREATING, network_id, CREATED),
            ),
            Statement(
                "UPDATE networks SET description = ?, state = ? WHERE id = ?", (description, PENDING, network_id)
            ),
            Statement("DELETE FROM networks_config WHERE network_id = ? AND node_id IS NULL", (network_id,)),
            *_shared(name, shared),
        ),
        guards=(
            Guard("SELECT COUNT(*) FROM networks WHERE id = ? AND state <> 1", (network_id,), ((1,),), "created"),
            addresses_guard(addresses),
        ),
        topics=_TOPICS,
    )


def made(network_id: int, member_id: int) -> Transaction:
    """The network is there on this member; with the last one it is created. Conflict "gone" (not asked any more)."""
    return Transaction(
        statements=(
            Statement(
                "UPDATE networks_nodes SET state = ? WHERE network_id = ? AND node_id = ?",
                (CREATED, network_id, member_id),
            ),
            Statement(
                "DELETE FROM networks_config WHERE network_id = ? AND node_id = ? AND key = ?",
                (network_id, member_id, ERROR_KEY),
            ),
            Statement(
                "UPDATE networks SET state = ? WHERE id = ? AND NOT EXISTS"
                " (SELECT 1 FROM networks_nodes WHERE network_id = ? AND state <> ?)",
                (CREATED, network_id, network_id, CREATED),
            ),
            Statement(
                "DELETE FROM networks_config WHERE network_id = ? AND key = ? AND"
                " EXISTS (SELECT 1 FROM networks WHERE id = ? AND state = ?)",
                (network_id, ONE_STEP_KEY, network_id, CREATED),
            ),
        ),
        guards=(_in_state(network_id, member_id, CREATING, CREATED),),
        topics=_TOPICS,
    )


def failed(network_id: int, name: str, member_id: int, state: int, reason: str) -> Transaction:
    """This member could not do what `state` asked for. Conflict "gone" (not asked any more)."""
    return Transaction(
        statements=(
            Statement("UPDATE networks SET state = ? WHERE id = ?", (ERRORED, network_id)),
            Statement(
                "UPDATE networks_nodes SET state = ? WHERE network_id = ? AND node_id = ?",
                (ERRORED, network_id, member_id),
            ),
            Statement(
                "DELETE FROM networks_config WHERE network_id = ? AND node_id = ? AND key = ?",
                (network_id, member_id, ERROR_KEY),
            ),
            *_own(name, member_id, {ERROR_KEY: reason}),
        ),
        guards=(_in_state(network_id, member_id, state),),
        topics=_TOPICS,
    )


def undo(network_id: int) -> Transaction:
    """A creation has failed somewhere: every member takes its share back. One that began with one command goes
    away, one in two phases is pending again. Conflict "created" (it has succeeded after all, or is gone)."""
    one_step = "EXISTS (SELECT 1 FROM networks_config WHERE network_id = ? AND key = ?)"
    return Transaction(
        statements=(
            Statement("UPDATE networks SET state = ? WHERE id = ?", (ERRORED, network_id)),
            Statement(
                f"UPDATE networks_nodes SET state = CASE WHEN {one_step} THEN ? ELSE ? END"
                " WHERE network_id = ? AND state <> ?",
                (network_id, ONE_STEP_KEY, DELETING, UNDOING, network_id, PENDING),
            ),
        ),
        guards=(Guard("SELECT COUNT(*) FROM networks WHERE id = ? AND state <> 1", (network_id,), ((1,),), "created"),),
        topics=_TOPICS,
    )


def undone(network_id: int, member_id: int) -> Transaction:
    """This member has taken its share back; after the last one the network is pending. Conflict "gone"."""
    left = "NOT EXISTS (SELECT 1 FROM networks_nodes WHERE network_id = ? AND state <> ?)"
    return Transaction(
        statements=(
            Statement(
                "UPDATE networks_nodes SET state = ? WHERE network_id = ? AND node_id = ?",
                (PENDING, network_id, member_id),
            ),
            Statement(
                "DELETE FROM networks_config WHERE network_id = ? AND node_id = ? AND key = ?",
                (network_id, member_id, ERROR_KEY),
            ),
            Statement(
                f"DELETE FROM networks_config WHERE network_id = ? AND node_id IS NULL AND {left}",
                (network_id, network_id, PENDING),
            ),
            Statement(
                f"UPDATE networks SET state = ? WHERE id = ? AND {left}", (PENDING, network_id, network_id, PENDING)
            ),
        ),
        guards=(_in_state(network_id, member_id, UNDOING),),
        topics=_TOPICS,
    )


def _in_state(network_id: int, member_id: int, *states: int) -> Guard:
    marks = ", ".join("?" * len(states))
    return Guard(
        f"SELECT COUNT(*) FROM networks_nodes WHERE network_id = ? AND node_id = ? AND state IN ({marks})",
        (network_id, member_id, *states),
        ((1,),),
        "gone",
    )


# -- what exists ------------------------------------------------------------------------------------------------------


def update(
    network_id: int,
    name: str,
    old: tuple[str, Mapping[str, str], Mapping[str, str]],
    new: tuple[str, Mapping[str, str], Mapping[str, str]],
    member_id: int,
    addresses: Rows | None = None,
) -> Transaction:
    """Give a network new (description, shared config, config of `member_id`). Conflict "changed"."""
    config = "SELECT key, value FROM networks_config WHERE network_id = ? AND node_id"
    guards = [
        Guard("SELECT description FROM networks WHERE id = ?", (network_id,), ((old[0],),), "changed"),
        Guard(f"{config} IS NULL ORDER BY key", (network_id,), tuple(sorted(old[1].items())), "changed"),
        Guard(f"{config} = ? ORDER BY key", (network_id, member_id), tuple(sorted(old[2].items())), "changed"),
    ]
    if addresses is not None:
        guards.append(addresses_guard(addresses))
    return Transaction(
        statements=(
            Statement("UPDATE networks SET description = ? WHERE id = ?", (new[0], network_id)),
            Statement("DELETE FROM networks_config WHERE network_id = ? AND node_id IS NULL", (network_id,)),
            *_shared(name, new[1]),
            Statement("DELETE FROM networks_config WHERE network_id = ? AND node_id = ?", (network_id, member_id)),
            *_own(name, member_id, new[2]),
        ),
        guards=tuple(guards),
        topics=_TOPICS,
    )


_DEVICE_USE = (
    "SELECT COUNT(*) FROM {kind}s_devices d JOIN {kind}s_devices_config c ON c.{kind}_device_id = d.id"
    " WHERE d.type = 1 AND c.key IN ('network', 'parent') AND c.value = ?"
)
_PARENT_USE = "SELECT COUNT(*) FROM networks_config WHERE key = 'parent' AND value = ?"


def _unused(name: str) -> list[Guard]:
    guards = [Guard(_DEVICE_USE.format(kind=kind), (name,), ((0,),), "in_use") for kind in ("instance", "profile")]
    return [*guards, Guard(_PARENT_USE, (name,), ((0,),), "in_use")]


def rename(network_id: int, old: str, new: str) -> Transaction:
    """Rename an unused network of a server that is alone. A taken name is a UNIQUE error. Conflicts "gone", "in_use"."""
    return Transaction(
        statements=(Statement("UPDATE networks SET name = ? WHERE id = ?", (new, network_id)),),
        guards=(
            Guard("SELECT name FROM networks WHERE id = ?", (network_id,), ((old,),), "gone"),
            *_unused(old),
        ),
        topics=_TOPICS,
    )


def retire(network_id: int, name: str) -> Transaction:
    """Nothing new may use the network, and its members remove it; those that are pending have nothing to remove.

    Conflict "gone" or "in_use".
    """
    pending = "SELECT node_id FROM networks_nodes WHERE network_id = ? AND state = ?"
    return Transaction(
        statements=(
            Statement("UPDATE networks SET state = ? WHERE id = ?", (PENDING, network_id)),
            Statement("DELETE FROM networks_config WHERE network_id = ? AND key = ?", (network_id, ERROR_KEY)),
            Statement(
                f"DELETE FROM networks_config WHERE network_id = ? AND node_id IN ({pending})",
                (network_id, network_id, PENDING),
            ),
            Statement("DELETE FROM networks_nodes WHERE network_id = ? AND state = ?", (network_id, PENDING)),
            Statement("UPDATE networks_nodes SET state = ? WHERE network_id = ?", (DELETING, network_id)),
            Statement(
                "DELETE FROM networks WHERE id = ? AND NOT EXISTS (SELECT 1 FROM networks_nodes WHERE network_id = ?)",
                (network_id, network_id),
            ),
        ),
        guards=(
            Guard("SELECT COUNT(*) FROM networks WHERE id = ?", (network_id,), ((1,),), "gone"),
            *_unused(name),
        ),
        topics=_TOPICS,
    )


def removed(network_id: int, member_id: int) -> Transaction:
    """This member has removed its share; the last one takes the network's rows along. Conflict "gone"."""
    return Transaction(
        statements=(
            Statement("DELETE FROM networks_nodes WHERE network_id = ? AND node_id = ?", (network_id, member_id)),
            Statement("DELETE FROM networks_config WHERE network_id = ? AND node_id = ?", (network_id, member_id)),
            Statement(
                "DELETE FROM networks WHERE id = ? AND NOT EXISTS (SELECT 1 FROM networks_nodes WHERE network_id = ?)",
                (network_id, network_id),
            ),
        ),
        guards=(_in_state(network_id, member_id, DELETING),),
        topics=_TOPICS,
    )
