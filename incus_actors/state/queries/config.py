"""Reads of the server's configuration: what is global, what is one member's.

Owns the queries of `config` and `node_server_config`. Must never fill in defaults (model.config_keys does).
"""

from __future__ import annotations

from incus_actors.state.reader import Reader


def global_config(db: Reader) -> dict[str, str]:
    """Return the keys that all members share, sorted."""
    return {row[0]: row[1] for row in db.query("SELECT key, value FROM config ORDER BY key")}


def member_config(db: Reader, member_id: int) -> dict[str, str]:
    """Return the keys that only this member has, sorted."""
    rows = db.query("SELECT key, value FROM node_server_config WHERE node_id = ? ORDER BY key", (member_id,))
    return {row[0]: row[1] for row in rows}


def server_config(db: Reader, member_id: int) -> dict[str, str]:
    """Return what `GET /1.0` of that member shows: both, sorted; its own value wins."""
    rows = db.query(
        "SELECT key, value, 0 AS own FROM config"
        " UNION ALL SELECT key, value, 1 FROM node_server_config WHERE node_id = ? ORDER BY key, own",
        (member_id,),
    )
    return {row[0]: row[1] for row in rows}
