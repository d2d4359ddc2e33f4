"""Version 1: members, trust, projects, profiles, instances, images, storage, networks, warnings, tokens.

Names are those of Incus 6.0.4 (`incus admin sql global .schema`) where it has the same thing (DESIGN D18); ours are
`node_server_config` (an Incus keeps it in each member's local database) and `cluster_tokens` (an Incus keeps tokens
in the memory of one member).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from incus_actors.state.migrations.tables import config_table, table

if TYPE_CHECKING:
    from sqlite_utils import Database


def upgrade(db: Database) -> None:
    """Create every table of the first version, referenced ones first."""
    table(db, "schema", "version:int updated_at:text", unique=(("version",),))
    _members(db)
    _projects_and_trust(db)
    _profiles(db)
    _instances(db)
    _images(db)
    _storage(db)
    _networks(db)
    _warnings_and_tokens(db)


def _members(db: Database) -> None:
    table(db, "config", "key:text value:text?", unique=(("key",),))
    table(db, "nodes_failure_domains", "name:text", unique=(("name",),))
    table(
        db,
        "nodes",
        "name:text description:text= address:text schema:int api_extensions:int heartbeat:text? state:int=0 arch:int=0"
        " failure_domain_id:int?",
        refs={"failure_domain_id": "nodes_failure_domains?"},
        unique=(("name",), ("address",)),
    )
    table(db, "nodes_roles", "node_id:int role:int", refs={"node_id": "nodes"}, unique=(("node_id", "role"),))
    # Member ids are never used again (CONSENSUS 3.9): the next one is a counter, not MAX(id) + 1.
    table(db, "counters", "name:text value:int", unique=(("name",),))
    config_table(db, "nodes_config", "node_id", "nodes")
    config_table(db, "node_server_config", "node_id", "nodes")
    table(db, "cluster_groups", "name:text description:text=", unique=(("name",),))
    table(
        db,
        "nodes_cluster_groups",
        "node_id:int group_id:int",
        refs={"node_id": "nodes", "group_id": "cluster_groups"},
        unique=(("node_id", "group_id"),),
    )


def _projects_and_trust(db: Database) -> None:
    table(db, "projects", "name:text description:text=", unique=(("name",),))
    config_table(db, "projects_config", "project_id", "projects")
    table(
        db,
        "certificates",
        "fingerprint:text type:int name:text certificate:text restricted:int=0 description:text=",
        unique=(("fingerprint",),),
    )
    table(
        db,
        "certificates_projects",
        "certificate_id:int project_id:int",
        refs={"certificate_id": "certificates", "project_id": "projects"},
        unique=(("certificate_id", "project_id"),),
    )


def _devices(db: Database, owner_table: str, owner: str, device_owner: str) -> None:
    table(
        db,
        f"{owner_table}_devices",
        f"{owner}:int name:text type:int=0",
        refs={owner: owner_table},
        unique=((owner, "name"),),
    )
    config_table(db, f"{owner_table}_devices_config", device_owner, f"{owner_table}_devices")


def _profiles(db: Database) -> None:
    table(
        db,
        "profiles",
        "name:text description:text= project_id:int",
        refs={"project_id": "projects"},
        unique=(("project_id", "name"),),
    )
    config_table(db, "profiles_config", "profile_id", "profiles")
    _devices(db, "profiles", "profile_id", "profile_device_id")


def _instances(db: Database) -> None:
    table(
        db,
        "instances",
        "node_id:int name:text architecture:int type:int ephemeral:int=0 creation_date:text stateful:int=0"
        " last_use_date:text? description:text= project_id:int expiry_date:text?",
        refs={"node_id": "nodes", "project_id": "projects"},
        unique=(("project_id", "name"),),
        index=(("node_id",), ("project_id", "node_id", "name")),
    )
    config_table(db, "instances_config", "instance_id", "instances")
    _devices(db, "instances", "instance_id", "instance_device_id")
    table(
        db,
        "instances_profiles",
        "instance_id:int profile_id:int apply_order:int=0",
        refs={"instance_id": "instances", "profile_id": "profiles"},
        unique=(("instance_id", "profile_id"),),
        index=(("profile_id",),),
    )
    table(
        db,
        "instances_snapshots",
        "instance_id:int name:text creation_date:text stateful:int=0 description:text= expiry_date:text?",
        refs={"instance_id": "instances"},
        unique=(("instance_id", "name"),),
    )
    config_table(db, "instances_snapshots_config", "instance_snapshot_id", "instances_snapshots")
    _devices(db, "instances_snapshots", "instance_snapshot_id", "instance_snapshot_device_id")


def _images(db: Database) -> None:
    table(
        db,
        "images",
        "fingerprint:text filename:text size:int public:int=0 architecture:int creation_date:text? expiry_date:text?"
        " upload_date:text cached:int=0 last_use_date:text? auto_update:int=0 project_id:int type:int=0",
        refs={"project_id": "projects"},
        unique=(("project_id", "fingerprint"),),
    )
    table(
        db,
        "images_properties",
        "image_id:int type:int key:text value:text?",
        refs={"image_id": "images"},
        unique=(("image_id", "key"),),
    )
    table(
        db,
        "images_aliases",
        "name:text image_id:int description:text= project_id:int",
        refs={"image_id": "images", "project_id": "projects"},
        unique=(("project_id", "name"),),
        index=(("image_id",),),
    )
    table(
        db,
        "images_nodes",
        "image_id:int node_id:int",
        refs={"image_id": "images", "node_id": "nodes"},
        unique=(("image_id", "node_id"),),
        index=(("node_id",),),
    )
    table(
        db,
        "images_profiles",
        "image_id:int profile_id:int",
        refs={"image_id": "images", "profile_id": "profiles"},
        unique=(("image_id", "profile_id"),),
    )
    table(
        db,
        "images_source",
        "image_id:int server:text protocol:int certificate:text alias:text",
        refs={"image_id": "images"},
        index=(("image_id",),),
    )


def _member_config(db: Database, name: str, owner: str, owner_table: str) -> None:
    """Create a key/value table whose rows may belong to one member (node_id NULL: the same on all of them)."""
    table(
        db,
        name,
        f"{owner}:int node_id:int? key:text value:text",
        refs={owner: owner_table, "node_id": "nodes"},
    )
    # NULLs are never equal to each other, so a plain unique index would let a global key in twice.
    db.execute(f"CREATE UNIQUE INDEX {name}_unique ON {name} ({owner}, IFNULL(node_id, -1), key)")


def _storage(db: Database) -> None:
    table(db, "storage_pools", "name:text driver:text description:text= state:int=0", unique=(("name",),))
    _member_config(db, "storage_pools_config", "storage_pool_id", "storage_pools")
    table(
        db,
        "storage_pools_nodes",
        "storage_pool_id:int node_id:int state:int=0",
        refs={"storage_pool_id": "storage_pools", "node_id": "nodes"},
        unique=(("storage_pool_id", "node_id"),),
    )
    table(
        db,
        "storage_volumes",
        "name:text storage_pool_id:int node_id:int? type:int description:text= project_id:int content_type:int=0"
        " creation_date:text=0001-01-01T00:00:00Z",
        refs={"storage_pool_id": "storage_pools", "node_id": "nodes", "project_id": "projects"},
    )
    db.execute(
        "CREATE UNIQUE INDEX storage_volumes_unique ON storage_volumes"
        " (storage_pool_id, IFNULL(node_id, -1), project_id, name, type)"
    )
    config_table(db, "storage_volumes_config", "storage_volume_id", "storage_volumes")


def _networks(db: Database) -> None:
    table(
        db,
        "networks",
        "project_id:int name:text description:text= state:int=0 type:int=0",
        refs={"project_id": "projects"},
        unique=(("project_id", "name"),),
    )
    _member_config(db, "networks_config", "network_id", "networks")
    table(
        db,
        "networks_nodes",
        "network_id:int node_id:int state:int=0",
        refs={"network_id": "networks", "node_id": "nodes"},
        unique=(("network_id", "node_id"),),
    )


def _warnings_and_tokens(db: Database) -> None:
    table(
        db,
        "warnings",
        "node_id:int? project_id:int? entity_type_code:int=-1 entity_id:int=-1 uuid:text type_code:int status:int"
        " first_seen_date:text last_seen_date:text updated_date:text? last_message:text count:int",
        refs={"node_id": "nodes", "project_id": "projects"},
        unique=(("uuid",),),
    )
    db.execute(
        "CREATE UNIQUE INDEX warnings_unique ON warnings"
        " (IFNULL(node_id, -1), IFNULL(project_id, -1), entity_type_code, entity_id, type_code)"
    )
    # `uuid` is the operation's; `kind` join or certificate; `request` what was asked and `metadata` what the
    # operation shows, both JSON.
    table(
        db,
        "cluster_tokens",
        "uuid:text kind:text name:text secret:text created_at:text expires_at:text? node_id:int? request:text"
        " metadata:text",
        refs={"node_id": "nodes?"},
        unique=(("uuid",), ("secret",)),
        index=(("kind", "name"),),
    )
