"""Reads about images: whole objects, prefixes of fingerprints, aliases, and who has the files.

Owns the SQL; used by services and actors. Images of a project without `features.images` are those of "default".
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from incus_actors.errors import BadRequestError
from incus_actors.model.architectures import name_of
from incus_actors.model.images import Image, ImageAlias, ImageAliasName
from incus_actors.model.instances import ZERO_TIME
from incus_actors.model.transaction import Value
from incus_actors.state.queries.instances import effective_project
from incus_actors.state.reader import Reader

_TYPES = {0: "container", 1: "virtual-machine"}


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image and its row ids. `image.project` is the project that it is kept in."""

    id: int
    project_id: int
    image: Image


def images_project(db: Reader, project: str) -> int | None:
    """Return the id of the project whose images `project` uses, or None if there is no such project."""
    return effective_project(db, project, "features.images")


def find(db: Reader, project: str, fingerprint: str) -> ImageRecord | None:
    """Return the image whose fingerprint begins with `fingerprint`, or None.

    Raises BadRequestError when more than one does.
    """
    project_id = images_project(db, project)
    if project_id is None or not fingerprint.isalnum():
        return None
    rows = db.query(
        "SELECT id FROM images WHERE project_id = ? AND substr(fingerprint, 1, ?) = ? ORDER BY id LIMIT 2",
        (project_id, len(fingerprint), fingerprint.lower()),
    )
    if len(rows) > 1:
        raise BadRequestError("More than one image matches")
    records = _load(db, "i.id = ?", (rows[0][0],)) if rows else []
    return records[0] if records else None


def all_of(db: Reader, project: str | None) -> list[ImageRecord]:
    """Return the images that a project uses (None: of all projects), newest last."""
    if project is None:
        return _load(db, "1", ())
    return _load(db, "i.project_id = ?", (images_project(db, project) or 0,))


def _load(db: Reader, where: str, params: tuple[Value, ...]) -> list[ImageRecord]:
    rows = db.query(
        "SELECT i.*, p.name AS project FROM images i JOIN projects p ON p.id = i.project_id"
        f" WHERE {where} ORDER BY i.id",
        params,
    )
    if not rows:
        return []
    scope = f"IN ({', '.join('?' * len(rows))})"
    ids = tuple(row["id"] for row in rows)
    properties: dict[int, dict[str, str]] = {}
    for owner, key, value in db.query(
        f"SELECT image_id, key, value FROM images_properties WHERE image_id {scope} ORDER BY key", ids
    ):
        properties.setdefault(owner, {})[key] = value or ""
    aliases: dict[int, list[ImageAliasName]] = {}
    for owner, name, description in db.query(
        f"SELECT image_id, name, description FROM images_aliases WHERE image_id {scope} ORDER BY name", ids
    ):
        aliases.setdefault(owner, []).append(ImageAliasName(name=name, description=description))
    profiles: dict[int, list[str]] = {}
    for owner, name in db.query(
        f"SELECT ip.image_id, p.name FROM images_profiles ip JOIN profiles p ON p.id = ip.profile_id"
        f" WHERE ip.image_id {scope} ORDER BY ip.profile_id",
        ids,
    ):
        profiles.setdefault(owner, []).append(name)
    return [
        ImageRecord(
            id=row["id"],
            project_id=row["project_id"],
            image=_image(row, properties.get(row["id"], {}), aliases.get(row["id"], []), profiles.get(row["id"], [])),
        )
        for row in rows
    ]


def _image(row: sqlite3.Row, properties: dict[str, str], aliases: list[ImageAliasName], profiles: list[str]) -> Image:
    return Image(
        auto_update=bool(row["auto_update"]),
        properties=properties,
        public=bool(row["public"]),
        expires_at=row["expiry_date"] or ZERO_TIME,
        profiles=profiles,
        aliases=aliases,
        architecture=name_of(row["architecture"]),
        cached=bool(row["cached"]),
        filename=row["filename"],
        fingerprint=row["fingerprint"],
        size=row["size"],
        type=_TYPES.get(row["type"], "unknown"),
        created_at=row["creation_date"] or ZERO_TIME,
        last_used_at=row["last_use_date"] or ZERO_TIME,
        uploaded_at=row["upload_date"],
        project=row["project"],
    )


# --- aliases ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """An alias and its row ids."""

    id: int
    image_id: int
    project_id: int
    alias: ImageAlias


def aliases(db: Reader, project: str) -> list[AliasRecord]:
    """Return the aliases that a project uses, by name."""
    return _aliases(db, "a.project_id = ?", (images_project(db, project) or 0,))


def alias(db: Reader, project: str, name: str) -> AliasRecord | None:
    """Return one alias, or None."""
    found = _aliases(db, "a.project_id = ? AND a.name = ?", (images_project(db, project) or 0, name))
    return found[0] if found else None


def _aliases(db: Reader, where: str, params: tuple[Value, ...]) -> list[AliasRecord]:
    return [
        AliasRecord(
            row["id"],
            row["image_id"],
            row["project_id"],
            ImageAlias(
                description=row["description"],
                target=row["fingerprint"],
                name=row["name"],
                type=_TYPES.get(row["type"], "unknown"),
            ),
        )
        for row in db.query(
            "SELECT a.id, a.image_id, a.project_id, a.name, a.description, i.fingerprint, i.type FROM images_aliases a"
            f" JOIN images i ON i.id = a.image_id WHERE {where} ORDER BY a.name",
            params,
        )
    ]


# --- files --------------------------------------------------------------------------------------------------


def holders(db: Reader, fingerprint: str) -> list[int]:
    """Return the ids of the members that have the file of an image."""
    rows = db.query(
        "SELECT DISTINCT n.node_id FROM images_nodes n JOIN images i ON i.id = n.image_id WHERE i.fingerprint = ?"
        " ORDER BY n.node_id",
        (fingerprint,),
    )
    return [row[0] for row in rows]


def known_fingerprints(db: Reader) -> frozenset[str]:
    """Return the fingerprints of every image of every project."""
    return frozenset(row[0] for row in db.query("SELECT DISTINCT fingerprint FROM images ORDER BY fingerprint"))


def fingerprints_on(db: Reader, node_id: int) -> frozenset[str]:
    """Return the fingerprints that a member is said to have."""
    rows = db.query(
        "SELECT DISTINCT i.fingerprint FROM images_nodes n JOIN images i ON i.id = n.image_id WHERE n.node_id = ?"
        " ORDER BY i.fingerprint",
        (node_id,),
    )
    return frozenset(row[0] for row in rows)


def minimal_replica(db: Reader) -> int:
    """Return cluster.images_minimal_replica (default 3; -1 means everywhere)."""
    value = db.scalar("SELECT value FROM config WHERE key = 'cluster.images_minimal_replica'")
    try:
        return int(value) if value else 3
    except ValueError:
        return 3


def using_profile(db: Reader, profile_id: int) -> list[tuple[str, str]]:
    """Return (project, fingerprint) of the images that name a profile (for `used_by`)."""
    rows = db.query(
        "SELECT p.name, i.fingerprint FROM images_profiles ip JOIN images i ON i.id = ip.image_id"
        " JOIN projects p ON p.id = i.project_id WHERE ip.profile_id = ? ORDER BY p.name, i.fingerprint",
        (profile_id,),
    )
    return [(row[0], row[1]) for row in rows]
