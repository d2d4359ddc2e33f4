"""Builders of the transactions that change the trust store and its tokens.

Owns their SQL; TrustService proposes what these return. Pure: secrets, uuids and times are parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from incus_actors.model.transaction import Guard, Statement, Transaction

TOKEN_CERTIFICATE = "certificate"  # noqa: S105  # a kind, not a secret
_TOPICS: tuple[str, ...] = ("certificates",)


@dataclass(frozen=True, slots=True)
class NewCertificate:
    """What goes into the rows of one certificate; `type` is the stored number, `projects` names."""

    fingerprint: str
    type: int
    name: str
    pem: str
    restricted: bool = False
    description: str = ""
    projects: tuple[str, ...] = ()


def add_certificate(new: NewCertificate, *, token_uuid: str | None = None) -> Transaction:
    """Trust a certificate; with `token_uuid` use up that token in the same step.

    A known fingerprint is SQLite's UNIQUE error. Conflict "project" (one is gone) or "token" (used already).
    """
    statements = [
        Statement(
            "INSERT INTO certificates (fingerprint, type, name, certificate, restricted, description)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (new.fingerprint, new.type, new.name, new.pem, int(new.restricted), new.description),
        ),
        *_projects(new.fingerprint, new.projects),
    ]
    guards = _projects_exist(new.projects)
    topics = _TOPICS
    if token_uuid is not None:
        statements.append(Statement("DELETE FROM cluster_tokens WHERE uuid = ?", (token_uuid,)))
        guards.append(Guard("SELECT COUNT(*) FROM cluster_tokens WHERE uuid = ?", (token_uuid,), ((1,),), "token"))
        topics = ("certificates", "tokens")
    return Transaction(tuple(statements), tuple(guards), topics)


def _projects(fingerprint: str, projects: Sequence[str]) -> list[Statement]:
    return [
        Statement(
            "INSERT INTO certificates_projects (certificate_id, project_id) VALUES"
            " ((SELECT id FROM certificates WHERE fingerprint = ?), (SELECT id FROM projects WHERE name = ?))",
            (fingerprint, project),
        )
        for project in sorted(set(projects))
    ]


def _projects_exist(projects: Sequence[str]) -> list[Guard]:
    return [
        Guard("SELECT COUNT(*) FROM projects WHERE name = ?", (project,), ((1,),), "project")
        for project in sorted(set(projects))
    ]


def replace_certificate(certificate_id: int, old: NewCertificate, new: NewCertificate) -> Transaction:
    """Give an entry new contents. Conflict "changed" if it is not `old`, "project"."""
    return Transaction(
        statements=(
            Statement(
                "UPDATE certificates SET fingerprint = ?, type = ?, name = ?, certificate = ?, restricted = ?,"
                " description = ? WHERE id = ?",
                (
                    new.fingerprint,
                    new.type,
                    new.name,
                    new.pem,
                    int(new.restricted),
                    new.description,
                    certificate_id,
                ),
            ),
            Statement("DELETE FROM certificates_projects WHERE certificate_id = ?", (certificate_id,)),
            *_projects(new.fingerprint, new.projects),
        ),
        guards=(
            Guard(
                "SELECT fingerprint, type, name, restricted, description FROM certificates WHERE id = ?",
                (certificate_id,),
                ((old.fingerprint, old.type, old.name, int(old.restricted), old.description),),
                "changed",
            ),
            Guard(
                "SELECT p.name FROM certificates_projects c JOIN projects p ON p.id = c.project_id"
                " WHERE c.certificate_id = ? ORDER BY p.name",
                (certificate_id,),
                tuple((project,) for project in sorted(set(old.projects))),
                "changed",
            ),
            *_projects_exist(new.projects),
        ),
        topics=_TOPICS,
    )


def delete_certificate(certificate_id: int) -> Transaction:
    """Conflict "gone"."""
    return Transaction(
        statements=(Statement("DELETE FROM certificates WHERE id = ?", (certificate_id,)),),
        guards=(Guard("SELECT COUNT(*) FROM certificates WHERE id = ?", (certificate_id,), ((1,),), "gone"),),
        topics=_TOPICS,
    )


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that lets one client into the trust store; `request` and `metadata` are JSON."""

    uuid: str
    name: str
    secret: str
    created_at: str
    expires_at: str | None
    member_id: int
    request: str
    metadata: str

    def __repr__(self) -> str:
        return f"NewToken({self.uuid}, {self.name!r})"


def add_token(new: NewToken) -> Transaction:
    """Store a certificate token."""
    return Transaction(
        statements=(
            Statement(
                "INSERT INTO cluster_tokens (uuid, kind, name, secret, created_at, expires_at, node_id, request,"
                " metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    new.uuid,
                    TOKEN_CERTIFICATE,
                    new.name,
                    new.secret,
                    new.created_at,
                    new.expires_at,
                    new.member_id,
                    new.request,
                    new.metadata,
                ),
            ),
        ),
        topics=("tokens",),
    )
