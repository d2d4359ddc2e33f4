"""The kinds of objects that a preseed makes or changes: their paths, bodies and words.

Owns what differs between pools, networks, projects, volumes and profiles; preseed_apply.py owns the order and the
undoing. Whether an object is already as wanted is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from incus_actors.cli.api_client import ApiClient, url
from incus_actors.cli.preseed import Entry

#: Pool keys that each member has for itself; the cluster's view of a pool does not show them.
MEMBER_POOL_KEYS = frozenset(
    {"source", "source.wipe", "size", "zfs.pool_name", "lvm.vg_name", "lvm.thinpool_name", "lvm.vg.force_reuse"}
)


class NotAsWantedError(Exception):
    """What is there already contradicts the preseed."""


def project_of(entry: Entry) -> str:
    """Return the project that an entry is for."""
    return entry.values.get("project") or "default"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind. `collection` and `place` give paths, `created` and `updated` the words for failures."""

    section: str
    collection: Callable[[Entry], str]
    place: Callable[[Entry], str]
    new: Callable[[Entry], dict[str, Any]]
    merged: Callable[[dict[str, Any], Entry], dict[str, Any]]
    created: Callable[[Entry], str]
    updated: Callable[[Entry], str]
    writable: tuple[str, ...] = ("config", "description")

    def now(self, client: ApiClient, entry: Entry) -> tuple[dict[str, Any], str] | None:
        """Return (object, ETag), None if there is no such object."""
        from incus_actors.cli.api_client import ApiFailureError

        try:
            return client.get_with_etag(self.place(entry))
        except ApiFailureError as failure:
            if failure.status == 404:
                return None
            raise

    def put_body(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return what a PUT takes to have `found` again."""
        return {key: found.get(key) for key in self.writable}


def given(keys: dict[str, str]) -> dict[str, str]:
    """Return the keys that say something: an empty value asks for the default."""
    return {key: value for key, value in keys.items() if value}


def merged_keys(found: dict[str, str] | None, wanted: dict[str, str]) -> dict[str, str]:
    """Return the keys that are there with the wanted ones put over them; an empty value takes a key away."""
    both = {**(found or {}), **wanted}
    return {key: value for key, value in both.items() if value}


def _merged(found: dict[str, Any], entry: Entry) -> dict[str, Any]:
    return {
        "config": merged_keys(found.get("config"), entry["config"]),
        "description": entry["description"] or found.get("description", ""),
    }


def _merged_pool(found: dict[str, Any], entry: Entry) -> dict[str, Any]:
    if found["driver"] != entry["driver"]:
        raise NotAsWantedError(
            f'Storage pool "{entry["name"]}" is of type "{found["driver"]}" instead of "{entry["driver"]}"'
        )
    hidden = MEMBER_POOL_KEYS - set(found.get("config") or {})
    wanted = {key: value for key, value in entry["config"].items() if key not in hidden}
    config = found.get("config") or {}
    if wanted.get("source") and wanted["source"] == config.get("volatile.initial_source"):
        wanted.pop("source")
    return {
        "config": merged_keys(config, wanted),
        "description": entry["description"] or found.get("description", ""),
    }


def _merged_network(found: dict[str, Any], entry: Entry) -> dict[str, Any]:
    config = found.get("config") or {}
    chosen = {
        key: value
        for key, value in entry["config"].items()
        if not (value == "auto" and config.get(key, "none") != "none")  # an address was chosen already
    }
    return {
        "config": merged_keys(config, chosen),
        "description": entry["description"] or found.get("description", ""),
    }


def _merged_profile(found: dict[str, Any], entry: Entry) -> dict[str, Any]:
    return {**_merged(found, entry), "devices": {**(found.get("devices") or {}), **entry["devices"]}}


def _in_project(entry: Entry) -> str:
    return f'"{entry["name"]}" in project "{project_of(entry)}"'


POOLS = Kind(
    "storage_pools",
    collection=lambda e: url("storage-pools"),
    place=lambda e: url("storage-pools", e["name"]),
    new=lambda e: {key: e[key] for key in ("config", "description", "name", "driver")},
    merged=_merged_pool,
    created=lambda e: f'Failed to create storage pool "{e["name"]}"',
    updated=lambda e: f'Failed to update storage pool "{e["name"]}"',
)
NETWORKS = Kind(
    "networks",
    collection=lambda e: url("networks", project=project_of(e)),
    place=lambda e: url("networks", e["name"], project=project_of(e)),
    new=lambda e: {key: e[key] for key in ("config", "description", "name", "type")},
    merged=_merged_network,
    created=lambda e: f"Failed to create local member network {_in_project(e)}",
    updated=lambda e: f"Failed to update local member network {_in_project(e)}",
)
PROJECTS = Kind(
    "projects",
    collection=lambda e: url("projects"),
    place=lambda e: url("projects", e["name"]),
    new=lambda e: {key: e[key] for key in ("config", "description", "name")},
    merged=_merged,
    created=lambda e: f'Failed to create local member project "{e["name"]}"',
    updated=lambda e: f'Failed to update local member project "{e["name"]}"',
)
VOLUMES = Kind(
    "storage_volumes",
    collection=lambda e: url("storage-pools", e["pool"], "volumes", e["type"] or "custom", project=project_of(e)),
    place=lambda e: url("storage-pools", e["pool"], "volumes", e["type"] or "custom", e["name"], project=project_of(e)),
    new=lambda e: {
        **{key: e[key] for key in ("config", "description", "name", "content_type")},
        "type": e["type"] or "custom",
    },
    merged=_merged,
    created=lambda e: f'Failed to create storage volume {_in_project(e)} on pool "{e["pool"]}"',
    updated=lambda e: f"Failed to update storage volume {_in_project(e)}",
)
PROFILES = Kind(
    "profiles",
    collection=lambda e: url("profiles", project=project_of(e)),
    place=lambda e: url("profiles", e["name"], project=project_of(e)),
    new=lambda e: {key: e[key] for key in ("config", "description", "devices", "name")},
    merged=_merged_profile,
    created=lambda e: f"Failed to create profile {_in_project(e)}",
    updated=lambda e: f"Failed to update profile {_in_project(e)}",
    writable=("config", "description", "devices"),
)
