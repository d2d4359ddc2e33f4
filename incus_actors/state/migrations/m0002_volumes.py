"""Version 2: snapshots and backups of storage volumes.

Names are those of Incus 6.0.4; the rows of unfinished work carry the hidden key `volatile.actors.phase`, as those of
instances do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from incus_actors.state.migrations.tables import config_table, table

if TYPE_CHECKING:
    from sqlite_utils import Database


def upgrade(db: Database) -> None:
    """Create the tables."""
    table(
        db,
        "storage_volumes_snapshots",
        "storage_volume_id:int name:text description:text= expiry_date:text? creation_date:text=0001-01-01T00:00:00Z",
        refs={"storage_volume_id": "storage_volumes"},
        unique=(("storage_volume_id", "name"),),
    )
    config_table(db, "storage_volumes_snapshots_config", "storage_volume_snapshot_id", "storage_volumes_snapshots")
    table(
        db,
        "storage_volumes_backups",
        "storage_volume_id:int name:text creation_date:text expiry_date:text? volume_only:int=0"
        " optimized_storage:int=0",
        refs={"storage_volume_id": "storage_volumes"},
        unique=(("storage_volume_id", "name"),),
    )
    # Deleting a project or asking what a member has must not scan every volume.
    for column in ("node_id", "project_id"):
        db["storage_volumes"].create_index([column], index_name=f"storage_volumes_{column}_idx")  # type: ignore[union-attr]
