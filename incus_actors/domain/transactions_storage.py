"""Builders of the transactions that change storage pools: rows first, then the work on the machine, then the state.

Owns their SQL; StoragePoolService proposes what these return. Pure. Every step can be repeated after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from incus_actors.model.transaction import Guard, Statement, Transaction, Value

#: State of storage_pools and storage_pools_nodes. The first three are Incus'; the others are ours, and of members
#: only: the member is to make its share, to remove it for good, or to remove it so that the pool is pending again. The
#: API shows them as Pending.
PENDING, CREATED, ERRORED, CREATING, DELETING, UNDOING = range(6)
#: A member's own key of a pool: why it could not make or remove its share. Never shown as config.
ERROR_KEY = "volatile.actors.error"
#: Before a member's own keys as they were given, from the time that its share was made: what undoing goes back to.
GIVEN_PREFIX = "volatile.actors.given."
MADE_KEY = "volatile.actors.made"  #: there from that time on
_ID = "(SELECT id FROM storage_pools WHERE name = ?)"
_TOPICS = ("storage",)


def _local(name: str, member_id: int, config: Mapping[str, str]) -> list[Statement]:
    return [
        Statement(
            f"INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES ({_ID}, ?, ?, ?)",
            (name, member_id, key, value),
        )
        for key, value in sorted(config.items())
    ]


def _shared(name: str, config: Mapping[str, str]) -> list[Statement]:
    return [
        Statement(
            f"INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES ({_ID}, NULL, ?, ?)",
            (name, key, value),
        )
        for key, value in sorted(config.items())
    ]


def _member(name: str, member_id: int, state: int) -> Statement:
    return Statement(
        f"INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES ({_ID}, ?, ?)",
        (name, member_id, state),
    )


def define_pool(
    name: str,
    driver: str,
    description: str,
    shared: Mapping[str, str],
    local: tuple[int, Mapping[str, str]],
) -> Transaction:
    """Write down a pool that one server is about to make for itself alone. A taken name is SQLite's UNIQUE error.

    Conflict "clustered" if it is not alone any more.
    """
    member_id, own = local
    return Transaction(
        statements=(
            Statement(
                "INSERT INTO storage_pools (name, driver, description, state) VALUES (?, ?, ?, ?)",
                (name, driver, description, PENDING),
            ),
            *_shared(name, shared),
            _member(name, member_id, CREATING),
            *_local(name, member_id, own),
        ),
        guards=(Guard("SELECT id FROM nodes ORDER BY id", (), ((member_id,),), "clustered"),),
        topics=_TOPICS,
    )


def define_pool_on_member(
    name: str, driver: str, description: str, member_id: int, local: Mapping[str, str]
) -> Transaction:
    """First phase in a cluster: the pool is to be on this member too. Conflict "driver", "created" or "exists"."""
    on_member = (
        "SELECT COUNT(*) FROM storage_pools_nodes n JOIN storage_pools p ON p.id = n.storage_pool_id"
        " WHERE p.name = ? AND n.node_id = ?"
    )
    return Transaction(
        statements=(
            Statement(
                "INSERT INTO storage_pools (name, driver, description, state) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (name) DO NOTHING",
                (name, driver, description, PENDING),
            ),
            _member(name, member_id, PENDING),
            *_local(name, member_id, local),
        ),
        guards=(
            Guard("SELECT COUNT(*) FROM nodes WHERE id = ?", (member_id,), ((1,),), "member"),
            Guard(
                "SELECT COUNT(*) FROM storage_pools WHERE name = ? AND driver <> ?", (name, driver), ((0,),), "driver"
            ),
            Guard("SELECT COUNT(*) FROM storage_pools WHERE name = ? AND state = 1", (name,), ((0,),), "created"),
            Guard(on_member, (name, member_id), ((0,),), "exists"),
        ),
        topics=_TOPICS,
    )


def define_pool_config(pool_id: int, name: str, description: str, shared: Mapping[str, str]) -> Transaction:
    """Second phase in a cluster: what is the same on every member, and let them begin. Conflict "created"."""
    return Transaction(
        statements=(
            Statement("DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND key = ?", (pool_id, ERROR_KEY)),
            Statement(
                "UPDATE storage_pools_nodes SET state = ? WHERE storage_pool_id = ? AND state <> ?",
                (CREATING, pool_id, CREATED),
            ),
            Statement("UPDATE storage_pools SET description = ? WHERE id = ?", (description, pool_id)),
            Statement("DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND node_id IS NULL", (pool_id,)),
            *_shared(name, shared),
        ),
        guards=(
            Guard("SELECT COUNT(*) FROM storage_pools WHERE id = ? AND state = 1", (pool_id,), ((0,),), "created"),
        ),
        topics=_TOPICS,
    )


def define_pool_everywhere(
    name: str, driver: str, description: str, shared: Mapping[str, str], member_ids: Sequence[int]
) -> Transaction:
    """Both phases at once, where no member needs keys of its own. A taken name is SQLite's UNIQUE error; conflict
    "members" when others are there now."""
    return Transaction(
        statements=(
            Statement(
                "INSERT INTO storage_pools (name, driver, description, state) VALUES (?, ?, ?, ?)",
                (name, driver, description, PENDING),
            ),
            *_shared(name, shared),
            *(_member(name, member_id, CREATING) for member_id in sorted(member_ids)),
        ),
        guards=(
            Guard(
                "SELECT id FROM nodes ORDER BY id",
                (),
                tuple((member_id,) for member_id in sorted(member_ids)),
                "members",
            ),
        ),
        topics=_TOPICS,
    )


def undo_pool(pool_id: int, *, forget: bool) -> Transaction:
    """The second phase failed on some member: all of them take back what they made, so that the pool is pending as
    before; or (`forget`: there was no first phase) is gone. Conflict "created" when all have it after all."""
    state = DELETING if forget else UNDOING
    return Transaction(
        statements=(
            Statement("UPDATE storage_pools SET state = ? WHERE id = ?", (PENDING, pool_id)),
            Statement("DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND key = ?", (pool_id, ERROR_KEY)),
            Statement("UPDATE storage_pools_nodes SET state = ? WHERE storage_pool_id = ?", (state, pool_id)),
        ),
        guards=(
            _there(pool_id),
            Guard("SELECT COUNT(*) FROM storage_pools WHERE id = ? AND state = 1", (pool_id,), ((0,),), "created"),
        ),
        topics=_TOPICS,
    )


def pool_undone(pool_id: int, name: str, member_id: int, given: Mapping[str, str]) -> Transaction:
    """This member has taken its share back; it is pending with the keys that were given. Conflict "gone"."""
    where: tuple[Value, ...] = (pool_id, member_id)
    return Transaction(
        statements=(
            Statement("DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND node_id = ?", where),
            *_local(name, member_id, given),
            Statement(
                "UPDATE storage_pools_nodes SET state = ? WHERE storage_pool_id = ? AND node_id = ?", (PENDING, *where)
            ),
        ),
        guards=(_member_in(pool_id, member_id, UNDOING),),
        topics=_TOPICS,
    )


def _member_in(pool_id: int, member_id: int, *states: int) -> Guard:
    marks = ", ".join("?" * len(states))
    return Guard(
        f"SELECT COUNT(*) FROM storage_pools_nodes WHERE storage_pool_id = ? AND node_id = ? AND state IN ({marks})",
        (pool_id, member_id, *states),
        ((1,),),
        "gone",
    )


def pool_made(pool_id: int, name: str, made: Mapping[int, Mapping[str, str]]) -> Transaction:
    """The pool is there on these members, with these member-specific keys. Conflict "gone": it is not wanted (any
    more) on one of them."""
    statements: list[Statement] = []
    for member_id, config in sorted(made.items()):
        where: tuple[Value, ...] = (pool_id, member_id)
        statements += [
            Statement("DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND node_id = ?", where),
            *_local(name, member_id, config),
            Statement(
                "UPDATE storage_pools_nodes SET state = ? WHERE storage_pool_id = ? AND node_id = ?", (CREATED, *where)
            ),
        ]
    statements.append(
        Statement(
            "UPDATE storage_pools SET state = ? WHERE id = ? AND NOT EXISTS"
            " (SELECT 1 FROM storage_pools_nodes WHERE storage_pool_id = ? AND state <> ?)",
            (CREATED, pool_id, pool_id, CREATED),
        )
    )
    guards = [_member_in(pool_id, member_id, CREATING, CREATED) for member_id in sorted(made)]
    return Transaction(tuple(statements), (_there(pool_id), *guards), _TOPICS)


def pool_failed(pool_id: int, name: str, member_id: int, state: int, reason: str) -> Transaction:
    """This member could not do with its share of the pool what its `state` asks for, for this reason. Conflict "gone"
    when it is to do something else by now: to remove what others couldn't make is still to be done."""
    return Transaction(
        statements=(
            Statement("UPDATE storage_pools SET state = ? WHERE id = ?", (ERRORED, pool_id)),
            Statement(
                "UPDATE storage_pools_nodes SET state = ? WHERE storage_pool_id = ? AND node_id = ?",
                (ERRORED, pool_id, member_id),
            ),
            Statement(
                "DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND node_id = ? AND key = ?",
                (pool_id, member_id, ERROR_KEY),
            ),
            *_local(name, member_id, {ERROR_KEY: reason}),
        ),
        guards=(_there(pool_id), _member_in(pool_id, member_id, state)),
        topics=_TOPICS,
    )


def _there(pool_id: int) -> Guard:
    return Guard("SELECT COUNT(*) FROM storage_pools WHERE id = ?", (pool_id,), ((1,),), "gone")


def update_pool(
    pool_id: int,
    name: str,
    old: tuple[str, Mapping[str, str], Mapping[str, str]],
    new: tuple[str, Mapping[str, str], Mapping[str, str]],
    member_id: int,
) -> Transaction:
    """Give a pool new (description, shared config, config of `member_id`). Conflict "changed"."""
    config = "SELECT key, value FROM storage_pools_config WHERE storage_pool_id = ? AND node_id"
    return Transaction(
        statements=(
            Statement("UPDATE storage_pools SET description = ? WHERE id = ?", (new[0], pool_id)),
            Statement("DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND node_id IS NULL", (pool_id,)),
            *_shared(name, new[1]),
            Statement(
                "DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND node_id = ?", (pool_id, member_id)
            ),
            *_local(name, member_id, new[2]),
        ),
        guards=(
            Guard("SELECT description FROM storage_pools WHERE id = ?", (pool_id,), ((old[0],),), "changed"),
            Guard(f"{config} IS NULL ORDER BY key", (pool_id,), tuple(sorted(old[1].items())), "changed"),
            Guard(f"{config} = ? ORDER BY key", (pool_id, member_id), tuple(sorted(old[2].items())), "changed"),
        ),
        topics=_TOPICS,
    )


def retire_pool(pool_id: int, name: str) -> Transaction:
    """Nothing new may come into the pool, and its members remove it. Conflict "gone" or "in_use"."""
    return Transaction(
        statements=(
            Statement("UPDATE storage_pools SET state = ? WHERE id = ?", (PENDING, pool_id)),
            Statement("DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND key = ?", (pool_id, ERROR_KEY)),
            Statement("UPDATE storage_pools_nodes SET state = ? WHERE storage_pool_id = ?", (DELETING, pool_id)),
        ),
        guards=(
            _there(pool_id),
            # Unpacked images (type 1) are copies that nobody misses.
            Guard(
                "SELECT COUNT(*) FROM storage_volumes WHERE storage_pool_id = ? AND type <> 1",
                (pool_id,),
                ((0,),),
                "in_use",
            ),
            Guard(
                "SELECT COUNT(*) FROM profiles_devices d JOIN profiles_devices_config c ON c.profile_device_id = d.id"
                " WHERE d.type = 2 AND c.key = 'pool' AND c.value = ?",
                (name,),
                ((0,),),
                "in_use",
            ),
        ),
        topics=_TOPICS,
    )


def pool_removed(pool_id: int, member_id: int) -> Transaction:
    """This member has removed its share; the last one takes the pool's rows along. Conflict "gone"."""
    return Transaction(
        statements=(
            Statement(
                "DELETE FROM storage_pools_nodes WHERE storage_pool_id = ? AND node_id = ?", (pool_id, member_id)
            ),
            Statement(
                "DELETE FROM storage_pools_config WHERE storage_pool_id = ? AND node_id = ?", (pool_id, member_id)
            ),
            Statement(
                "DELETE FROM storage_pools WHERE id = ? AND NOT EXISTS"
                " (SELECT 1 FROM storage_pools_nodes WHERE storage_pool_id = ?)",
                (pool_id, pool_id),
            ),
        ),
        guards=(_there(pool_id),),
        topics=_TOPICS,
    )


def forget_pool(pool_id: int) -> Transaction:
    """A pool that never came to be on its only server: its rows go. Conflict "created"."""
    made = "SELECT COUNT(*) FROM storage_pools WHERE id = ? AND state = 1"
    return Transaction(
        statements=(Statement("DELETE FROM storage_pools WHERE id = ?", (pool_id,)),),
        guards=(Guard(made, (pool_id,), ((0,),), "created"),),
        topics=_TOPICS,
    )
