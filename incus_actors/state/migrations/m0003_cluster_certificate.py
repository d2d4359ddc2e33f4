"""Version 3: which certificate the members of the cluster show (`incus cluster update-certificate`).

The table has one row, or none until the certificate of the bootstrap is replaced for the first time. Its key is in no
row: members hand it to each other over HTTPS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from incus_actors.state.migrations.tables import table

if TYPE_CHECKING:
    from sqlite_utils import Database


def upgrade(db: Database) -> None:
    """Create the table."""
    table(db, "cluster_certificate", "fingerprint:text certificate:text updated_at:text")
