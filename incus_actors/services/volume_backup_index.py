"""index.yaml of a backup: what an archive says of the volume in it.

Owns reading and writing that file as a real Incus 6.0.4 has it. Used by services/volume_backups.py in a thread (YAML
is slow, and imported only then); must never take types from an uploaded file for granted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from incus_actors.errors import BadRequestError
from incus_actors.services.volume_snapshots import ZERO_TIME, check_snapshot_name
from incus_actors.state.queries.volumes import SnapshotRow, VolumeRow


@dataclass(frozen=True, slots=True)
class IndexSnapshot:
    """One snapshot of an archive."""

    name: str
    description: str
    created_at: str
    expires_at: str
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BackupIndex:
    """What is in an archive. `optimized`: in the format of the driver `backend`."""

    name: str
    backend: str
    optimized: bool
    content: str
    description: str
    config: Mapping[str, str]
    snapshots: tuple[IndexSnapshot, ...]


def dump_index(row: VolumeRow, snapshots: Sequence[SnapshotRow], *, optimized: bool) -> bytes:
    """Return index.yaml of a volume."""
    import yaml  # heavy

    config: dict[str, Any] = {
        "volume": {
            "config": dict(row.config),
            "description": row.description,
            "name": row.name,
            "type": row.type,
            "used_by": [],
            "location": row.location,
            "content_type": row.content,
            "project": row.project,
            "created_at": row.created_at,
        },
    }
    if snapshots:
        config["volume_snapshots"] = [
            {
                "description": snapshot.description,
                "expires_at": snapshot.expires_at or ZERO_TIME,
                "name": snapshot.name,
                "config": dict(snapshot.config),
                "content_type": row.content,
                "created_at": snapshot.created_at,
            }
            for snapshot in snapshots
        ]
    index = {
        "name": row.name,
        "backend": row.driver,
        "pool": row.pool,
        **({"snapshots": [snapshot.name for snapshot in snapshots]} if snapshots else {}),
        "optimized": optimized,
        "optimized_header": False,
        "type": row.type,
        "config": config,
    }
    return str(yaml.safe_dump(index, sort_keys=False)).encode()


def load_index(data: bytes) -> BackupIndex:
    """Return what an uploaded index.yaml says. Raises BadRequestError."""
    import yaml  # heavy

    class Loader(yaml.SafeLoader):
        """No aliases (a few hundred bytes could become gigabytes), and times stay text."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise BadRequestError("Invalid backup index: aliases are not allowed")
            return super().compose_node(parent, index)

    Loader.yaml_implicit_resolvers = {
        key: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        found = yaml.load(data, Loader=Loader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadRequestError(f"Invalid backup index: {error}") from None
    root = _mapping(found)
    if _text(root, "type") not in ("", "custom"):
        raise BadRequestError(f'Backup of type "{_text(root, "type")}" is not one of a custom volume')
    config = _mapping(root.get("config"))
    volume = _mapping(config.get("volume"))
    content = _text(volume, "content_type") or "filesystem"
    if content not in ("filesystem", "block"):
        raise BadRequestError(f'Volume of content type "{content}" cannot be restored')
    snapshots = config.get("volume_snapshots") or []
    if not isinstance(snapshots, list):
        raise BadRequestError("Invalid backup index")
    listed = root.get("snapshots") or []
    return BackupIndex(
        name=_text(root, "name") or _text(volume, "name"),
        backend=_text(root, "backend"),
        optimized=root.get("optimized") is True,
        content=content,
        description=_text(volume, "description"),
        config=_strings(volume.get("config")),
        snapshots=tuple(
            snapshot for snapshot in map(_snapshot, snapshots) if isinstance(listed, list) and snapshot.name in listed
        ),
    )


def _snapshot(found: Any) -> IndexSnapshot:
    snapshot = _mapping(found)
    name = _text(snapshot, "name").rpartition("/")[2]
    check_snapshot_name(name)
    expires_at = _text(snapshot, "expires_at")
    return IndexSnapshot(
        name,
        _text(snapshot, "description"),
        _text(snapshot, "created_at") or ZERO_TIME,
        "" if expires_at == ZERO_TIME else expires_at,
        _strings(snapshot.get("config")),
    )


def _mapping(found: Any) -> Mapping[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequestError("Invalid backup index")
    return found


def _text(mapping: Mapping[str, Any], key: str) -> str:
    value = mapping.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRequestError(f"Invalid backup index: {key} is no text")
    return value or ""


def _strings(found: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in _mapping(found).items() if value is not None}
