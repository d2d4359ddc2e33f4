"""Reads of the trust store and of certificate tokens.

Owns the queries; services call them with a Database or a snapshot. Must never write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from incus_actors.state.reader import Reader

TYPES = {1: "client", 2: "server", 3: "metrics"}
TYPE_NUMBERS = {name: number for number, name in TYPES.items()}


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """One trusted certificate; `projects` are names, sorted."""

    id: int
    fingerprint: str
    type: str
    name: str
    certificate: str
    restricted: bool
    description: str
    projects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token of any kind. `secret` and what is in `metadata` never go into a log."""

    uuid: str
    kind: str
    name: str
    secret: str
    created_at: str
    expires_at: str | None
    member: str
    request: Mapping[str, Any]
    metadata: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"TokenRow({self.uuid}, {self.kind}, {self.name!r})"


def certificates(db: Reader, fingerprint_prefix: str = "") -> list[CertificateRow]:
    """Return the certificates whose fingerprint begins so, in order of id."""
    projects: dict[int, list[str]] = {}
    for row in db.query(
        "SELECT c.certificate_id, p.name FROM certificates_projects c JOIN projects p ON p.id = c.project_id"
        " ORDER BY p.name"
    ):
        projects.setdefault(row[0], []).append(row[1])
    return [
        CertificateRow(
            id=row["id"],
            fingerprint=row["fingerprint"],
            type=TYPES.get(row["type"], "client"),
            name=row["name"],
            certificate=row["certificate"],
            restricted=bool(row["restricted"]),
            description=row["description"],
            projects=tuple(projects.get(row["id"], ())),
        )
        for row in db.query(
            "SELECT * FROM certificates WHERE substr(fingerprint, 1, ?) = ? ORDER BY id",
            (len(fingerprint_prefix), fingerprint_prefix),
        )
    ]


_TOKENS = (
    "SELECT t.uuid, t.kind, t.name, t.secret, t.created_at, t.expires_at, IFNULL(n.name, '') AS member, t.request,"
    " t.metadata FROM cluster_tokens t LEFT JOIN nodes n ON n.id = t.node_id"
)


def tokens(db: Reader, kind: str | None = None) -> list[TokenRow]:
    """Return the tokens of one kind ("join", "certificate") or all, oldest first."""
    if kind is None:
        rows = db.query(f"{_TOKENS} ORDER BY t.id")
    else:
        rows = db.query(f"{_TOKENS} WHERE t.kind = ? ORDER BY t.id", (kind,))
    return [
        TokenRow(
            uuid=row["uuid"],
            kind=row["kind"],
            name=row["name"],
            secret=row["secret"],
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            member=row["member"],
            request=json.loads(row["request"] or "{}"),
            metadata=json.loads(row["metadata"] or "{}"),
        )
        for row in rows
    ]
