"""Transactions about images: rows, aliases, and which member has the file.

Owns the statements and their guards (DESIGN D2); called by the image service and the image actor. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from incus_actors.model.transaction import Guard, Statement, Transaction

TOPICS = ("images",)


@dataclass(frozen=True, slots=True)
class NewImage:
    """What goes into the rows of an image that this member has. Times RFC 3339 or None."""

    fingerprint: str
    filename: str
    size_bytes: int
    public: bool
    architecture: int
    created_at: str | None
    expires_at: str | None
    uploaded_at: str
    project_id: int
    properties: Mapping[str, str]
    profile_ids: Sequence[int]
    node_id: int


def create(new: NewImage) -> Transaction:
    """Return the rows. A second one is the error "UNIQUE constraint failed: images.project_id, images.fingerprint"."""
    image = "(SELECT id FROM images WHERE project_id = ? AND fingerprint = ?)"
    key = (new.project_id, new.fingerprint)
    statements = [
        Statement(
            "INSERT INTO images (fingerprint, filename, size, public, architecture, creation_date, expiry_date,"
            " upload_date, project_id, type) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0) RETURNING id",
            (
                new.fingerprint,
                new.filename,
                new.size_bytes,
                int(new.public),
                new.architecture,
                new.created_at,
                new.expires_at,
                new.uploaded_at,
                new.project_id,
            ),
        ),
        *(
            Statement(
                f"INSERT INTO images_properties (image_id, type, key, value) VALUES ({image}, 0, ?, ?)", (*key, k, v)
            )
            for k, v in sorted(new.properties.items())
        ),
        *(
            Statement(f"INSERT INTO images_profiles (image_id, profile_id) VALUES ({image}, ?)", (*key, profile_id))
            for profile_id in new.profile_ids
        ),
        Statement(f"INSERT INTO images_nodes (image_id, node_id) VALUES ({image}, ?)", (*key, new.node_id)),
    ]
    return Transaction(tuple(statements), (), TOPICS)


def add_location(fingerprint: str, node_id: int) -> Transaction:
    """Return the note that `node_id` has the file now. Conflict "gone": the image was deleted meanwhile."""
    return Transaction(
        (
            Statement(
                "INSERT INTO images_nodes (image_id, node_id) SELECT id, ? FROM images WHERE fingerprint = ?"
                " ORDER BY id ON CONFLICT (image_id, node_id) DO NOTHING",
                (node_id, fingerprint),
            ),
        ),
        (Guard("SELECT EXISTS (SELECT 1 FROM images WHERE fingerprint = ?)", (fingerprint,), ((1,),), "gone"),),
        TOPICS,
    )


def remove_location(fingerprint: str, node_id: int) -> Transaction:
    """Return the note that `node_id` doesn't have the file (any more)."""
    return Transaction(
        (
            Statement(
                "DELETE FROM images_nodes WHERE node_id = ? AND image_id IN (SELECT id FROM images WHERE fingerprint = ?)",
                (node_id, fingerprint),
            ),
        ),
        (),
        TOPICS,
    )


@dataclass(frozen=True, slots=True)
class ImageChange:
    """The whole writable part."""

    auto_update: bool
    public: bool
    expires_at: str | None
    properties: Mapping[str, str]
    profile_ids: Sequence[int]


def update(image_id: int, change: ImageChange) -> Transaction:
    """Return the replacement of what a user may change. Conflict "gone"."""
    return Transaction(
        (
            Statement(
                "UPDATE images SET auto_update = ?, public = ?, expiry_date = ? WHERE id = ?",
                (int(change.auto_update), int(change.public), change.expires_at, image_id),
            ),
            Statement("DELETE FROM images_properties WHERE image_id = ?", (image_id,)),
            Statement("DELETE FROM images_profiles WHERE image_id = ?", (image_id,)),
            *(
                Statement(
                    "INSERT INTO images_properties (image_id, type, key, value) VALUES (?, 0, ?, ?)", (image_id, k, v)
                )
                for k, v in sorted(change.properties.items())
            ),
            *(
                Statement("INSERT INTO images_profiles (image_id, profile_id) VALUES (?, ?)", (image_id, profile_id))
                for profile_id in change.profile_ids
            ),
        ),
        (_image_exists(image_id),),
        TOPICS,
    )


def _image_exists(image_id: int) -> Guard:
    return Guard("SELECT COUNT(*) FROM images WHERE id = ?", (image_id,), ((1,),), "gone")


def touch(image_id: int, used_at: str) -> Transaction:
    """Return the note of the last use."""
    return Transaction(
        (Statement("UPDATE images SET last_use_date = ? WHERE id = ?", (used_at, image_id)),), (), TOPICS
    )


def delete(image_id: int) -> Transaction:
    """Return the removal of an image, its aliases and places. Conflict "gone"."""
    return Transaction((Statement("DELETE FROM images WHERE id = ?", (image_id,)),), (_image_exists(image_id),), TOPICS)


# --- aliases ------------------------------------------------------------------------------------------------


def create_alias(name: str, description: str, image_id: int, project_id: int) -> Transaction:
    """Return a new alias. Conflicts: "exists", "gone"."""
    return Transaction(
        (
            Statement(
                "INSERT INTO images_aliases (name, image_id, description, project_id) VALUES (?, ?, ?, ?)",
                (name, image_id, description, project_id),
            ),
        ),
        (_alias_free(name, project_id), _image_exists(image_id)),
        TOPICS,
    )


def _alias_free(name: str, project_id: int) -> Guard:
    sql = "SELECT COUNT(*) FROM images_aliases WHERE name = ? AND project_id = ?"
    return Guard(sql, (name, project_id), ((0,),), "exists")


def _alias_is(alias_id: int) -> Guard:
    return Guard("SELECT COUNT(*) FROM images_aliases WHERE id = ?", (alias_id,), ((1,),), "gone")


def update_alias(alias_id: int, description: str, image_id: int) -> Transaction:
    """Return the change of an alias. Conflict "gone" (alias or image)."""
    return Transaction(
        (
            Statement(
                "UPDATE images_aliases SET description = ?, image_id = ? WHERE id = ?",
                (description, image_id, alias_id),
            ),
        ),
        (_alias_is(alias_id), _image_exists(image_id)),
        TOPICS,
    )


def rename_alias(alias_id: int, name: str, project_id: int) -> Transaction:
    """Return the rename of an alias. Conflicts: "exists", "gone"."""
    return Transaction(
        (Statement("UPDATE images_aliases SET name = ? WHERE id = ?", (name, alias_id)),),
        (_alias_is(alias_id), _alias_free(name, project_id)),
        TOPICS,
    )


def delete_alias(alias_id: int) -> Transaction:
    """Return the removal of an alias. Conflict "gone"."""
    return Transaction(
        (Statement("DELETE FROM images_aliases WHERE id = ?", (alias_id,)),), (_alias_is(alias_id),), TOPICS
    )
