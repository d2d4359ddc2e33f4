"""Builders of the transactions that change warnings.

Owns their SQL; WarningService proposes what these return. Pure: uuids and times are parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from incus_actors.model.transaction import Guard, Statement, Transaction, Value

NEW, ACKNOWLEDGED, RESOLVED = 1, 2, 3
_TOPICS = ("warnings",)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that somebody should look at. `member_id` and `project_id` None: no certain one."""

    type_code: int
    message: str
    member_id: int | None = None
    project_id: int | None = None
    entity_type_code: int = -1
    entity_id: int = -1


def raise_warning(occurrence: Occurrence, uuid: str, now: str) -> Transaction:
    """Count one more of its kind, or make the first; a resolved one is new again, an acknowledged one stays so."""
    key: tuple[Value, ...] = (
        occurrence.member_id,
        occurrence.project_id,
        occurrence.entity_type_code,
        occurrence.entity_id,
        occurrence.type_code,
    )
    same = "node_id IS ? AND project_id IS ? AND entity_type_code = ? AND entity_id = ? AND type_code = ?"
    return Transaction(
        statements=(
            Statement(
                "UPDATE warnings SET count = count + 1, last_seen_date = ?, updated_date = ?, last_message = ?,"
                f" status = CASE status WHEN ? THEN ? ELSE status END WHERE {same}",
                (now, now, occurrence.message, RESOLVED, NEW, *key),
            ),
            Statement(
                "INSERT INTO warnings (node_id, project_id, entity_type_code, entity_id, type_code, uuid, status,"
                " first_seen_date, last_seen_date, updated_date, last_message, count)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO NOTHING",
                (*key, uuid, NEW, now, now, now, occurrence.message),
            ),
        ),
        topics=_TOPICS,
    )


def resolve_warnings(
    type_code: int, member_id: int | None, now: str, *, about: Sequence[int] | None = None
) -> Transaction:
    """What all warnings of a kind about a member told of is over; or only that about these entities."""
    only = "" if about is None else f" AND entity_id IN ({', '.join('?' * len(about))})"
    return Transaction(
        statements=(
            Statement(
                "UPDATE warnings SET status = ?, updated_date = ?"
                f" WHERE type_code = ? AND node_id IS ? AND status <> ?{only}",
                (RESOLVED, now, type_code, member_id, RESOLVED, *(about or ())),
            ),
        ),
        topics=_TOPICS,
    )


def set_status(uuid: str, status: int, now: str) -> Transaction:
    """Conflict "gone"."""
    return Transaction(
        statements=(Statement("UPDATE warnings SET status = ?, updated_date = ? WHERE uuid = ?", (status, now, uuid)),),
        guards=(_there(uuid),),
        topics=_TOPICS,
    )


def delete_warning(uuid: str) -> Transaction:
    """Conflict "gone"."""
    return Transaction((Statement("DELETE FROM warnings WHERE uuid = ?", (uuid,)),), (_there(uuid),), _TOPICS)


def _there(uuid: str) -> Guard:
    return Guard("SELECT COUNT(*) FROM warnings WHERE uuid = ?", (uuid,), ((1,),), "gone")
