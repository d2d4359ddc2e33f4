"""Reads of warnings.

Owns the queries and the meaning of the stored codes; services call them with a Database. Must never write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from incus_actors.state.reader import Reader

STATUSES: Final = {1: "new", 2: "acknowledged", 3: "resolved"}
STATUS_NUMBERS: Final = {name: number for number, name in STATUSES.items()}
SEVERITIES: Final = {1: "low", 2: "moderate", 3: "high"}


@dataclass(frozen=True, slots=True)
class WarningRow:
    """One warning; `location` and `project` are names or ""; times RFC 3339."""

    uuid: str
    location: str
    project: str
    type_code: int
    status: int
    count: int
    first_seen_at: str
    last_seen_at: str
    last_message: str


_COLUMNS = (
    "SELECT w.uuid, IFNULL(n.name, '') AS location, IFNULL(p.name, '') AS project, w.type_code, w.status, w.count,"
    " w.first_seen_date, w.last_seen_date, w.last_message FROM warnings w LEFT JOIN nodes n ON n.id = w.node_id"
    " LEFT JOIN projects p ON p.id = w.project_id"
)


def warnings(db: Reader, project: str | None = None) -> list[WarningRow]:
    """Return all warnings, or those of one project, in order of uuid."""
    if project is None:
        rows = db.query(f"{_COLUMNS} ORDER BY w.uuid")
    else:
        rows = db.query(f"{_COLUMNS} WHERE p.name = ? ORDER BY w.uuid", (project,))
    return [WarningRow(*tuple(row)) for row in rows]


def warning(db: Reader, uuid: str) -> WarningRow | None:
    """Return one warning."""
    row = db.one(f"{_COLUMNS} WHERE w.uuid = ?", (uuid,))
    return None if row is None else WarningRow(*tuple(row))


def warned_members(db: Reader, type_code: int) -> frozenset[int]:
    """Return the ids of members about which there is a warning of this kind that isn't resolved."""
    rows = db.query(
        "SELECT node_id FROM warnings WHERE type_code = ? AND status <> 3 AND node_id IS NOT NULL ORDER BY node_id",
        (type_code,),
    )
    return frozenset(int(row[0]) for row in rows)


def unresolved(db: Reader, type_code: int, member_id: int) -> bool:
    """Return whether there is a warning of this kind about a member that is not resolved."""
    found = db.scalar(
        "SELECT COUNT(*) FROM warnings WHERE type_code = ? AND node_id = ? AND status <> 3", (type_code, member_id)
    )
    return bool(found)


def unresolved_entities(db: Reader, type_code: int, member_id: int) -> frozenset[int]:
    """Return what the warnings of this kind about a member are about, as far as they are not resolved."""
    rows = db.query(
        "SELECT entity_id FROM warnings WHERE type_code = ? AND node_id = ? AND status <> 3 ORDER BY entity_id",
        (type_code, member_id),
    )
    return frozenset(int(row[0]) for row in rows)
