"""Preseed files: strict reading, where every mistake is told with its line.

Owns the shapes of the documented files (bootstrap, the ways of joining, resources) and their printing; called by
admin_init.py. It only reads: what is done with a preseed is preseed_apply.py's and joining.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from incus_actors.cli.shapes import Keys

MAX_BYTES: Final = 4 << 20


class PreseedError(Exception):
    """The file cannot be used; one reason per line."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


@dataclass(slots=True)
class Entry:
    """One object of a list, or the cluster section. `values` has every field of its kind."""

    values: dict[str, Any]
    line: int = 0  #: where it begins; 0 if it does not come from a file
    lines: dict[str, int] = field(default_factory=dict)  #: field → its line

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def at(self, name: str) -> int:
        """Return the line of a field, or of the whole."""
        return self.lines.get(name, self.line)


@dataclass(slots=True)
class Preseed:
    """Everything that `admin init` configures."""

    config: dict[str, str] = field(default_factory=dict)
    config_lines: dict[str, int] = field(default_factory=dict)
    networks: list[Entry] = field(default_factory=list)
    storage_pools: list[Entry] = field(default_factory=list)
    storage_volumes: list[Entry] = field(default_factory=list)
    profiles: list[Entry] = field(default_factory=list)
    projects: list[Entry] = field(default_factory=list)
    cluster: Entry | None = None

    @property
    def joins(self) -> bool:
        """Whether it makes this server a member of an existing cluster."""
        given = self.cluster.values if self.cluster is not None else {}
        return bool(given.get("cluster_token") or (given.get("cluster_address") and given.get("server_address")))

    def sections(self) -> dict[str, int]:
        """Return section → line of what is configured beside the cluster."""
        found = {}
        if self.config:
            found["config"] = min(self.config_lines.values(), default=0)
        for name in ("networks", "storage_pools", "storage_volumes", "profiles", "projects"):
            entries: list[Entry] = getattr(self, name)
            if entries:
                found[name] = entries[0].line
        return found


# -- kinds of values --------------------------------------------------------------------------------------------------

_TEXT, _FLAG, _KEYS, _DEVICES, _MEMBER_KEYS = "string", "bool", "map[string]string", "map[string]map[string]string", ""

#: Go's name of each kind of object, which the stock client shows → its fields in the order of printing
_POOL = "api.StoragePoolsPost"
_NETWORK = "api.InitNetworksProjectPost"
_VOLUME = "api.InitStorageVolumesProjectPost"
_PROFILE = "api.InitProfileProjectPost"
_PROJECT = "api.ProjectsPost"
_CLUSTER = "api.InitClusterPreseed"
_MEMBER_KEY = "api.ClusterMemberConfigKey"
_FIELDS: Final[dict[str, dict[str, str]]] = {
    _POOL: {"config": _KEYS, "description": _TEXT, "name": _TEXT, "driver": _TEXT},
    _NETWORK: {"config": _KEYS, "description": _TEXT, "name": _TEXT, "type": _TEXT, "project": _TEXT},
    _VOLUME: {
        "config": _KEYS,
        "description": _TEXT,
        "name": _TEXT,
        "type": _TEXT,
        "content_type": _TEXT,
        "pool": _TEXT,
        "project": _TEXT,
    },
    _PROFILE: {"config": _KEYS, "description": _TEXT, "devices": _DEVICES, "name": _TEXT, "project": _TEXT},
    _PROJECT: {"config": _KEYS, "description": _TEXT, "name": _TEXT},
    _MEMBER_KEY: {"entity": _TEXT, "name": _TEXT, "key": _TEXT, "value": _TEXT, "description": _TEXT},
    _CLUSTER: {
        "server_name": _TEXT,
        "enabled": _FLAG,
        "member_config": _MEMBER_KEYS,
        "cluster_address": _TEXT,
        "cluster_certificate": _TEXT,
        "server_address": _TEXT,
        "cluster_token": _TEXT,
        "cluster_certificate_path": _TEXT,
        "cluster_password": _TEXT,
    },
}
_LISTS: Final = {
    "networks": _NETWORK,
    "storage_pools": _POOL,
    "storage_volumes": _VOLUME,
    "profiles": _PROFILE,
    "projects": _PROJECT,
}
_ZERO: Final[dict[str, Callable[[], Any]]] = {_TEXT: str, _FLAG: bool, _KEYS: dict, _DEVICES: dict, _MEMBER_KEYS: list}


def entry(kind: str, **values: Any) -> Entry:
    """Return an entry of "storage_pools", "cluster" …, made by questions instead of a file."""
    fields = _FIELDS[_CLUSTER if kind == "cluster" else _LISTS[kind]]
    return Entry({name: values.get(name, _ZERO[type_]()) for name, type_ in fields.items()})


# -- reading ----------------------------------------------------------------------------------------------------------


def parse(text: str) -> Preseed:
    """Return what a preseed file says. Raises PreseedError with every mistake and its line."""
    if len(text.encode()) > MAX_BYTES:
        raise PreseedError([f"the preseed is larger than {MAX_BYTES >> 20} MiB"])
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        raise PreseedError([f"yaml: line {mark.line + 1 if mark else 1}: {problem.problem}"]) from None
    except (yaml.YAMLError, RecursionError) as problem:
        raise PreseedError([f"yaml: {problem}"]) from None
    if node is None:
        return Preseed()
    reader = _Reader(loader)
    found = reader.preseed(node)
    if reader.problems:
        raise PreseedError(["yaml: unmarshal errors:", *reader.problems])
    return found


class _Reader:
    """Walks the nodes and notes what does not fit."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._seen: set[int] = set()  #: maps that were looked at: an alias shows one again
        self.problems: list[str] = []

    def _problem(self, node: yaml.Node, text: str) -> None:
        self.problems.append(f"  line {_line(node)}: {text}")

    def _mismatch(self, node: yaml.Node, wanted: str) -> None:
        self._problem(node, f"cannot unmarshal {_shown(node)} into {wanted}")

    def preseed(self, node: yaml.Node) -> Preseed:
        found = Preseed()
        for name, key, value in self._pairs(node, "api.InitPreseed"):
            if name == "config":
                found.config = self._keys(value)
                found.config_lines = self._lines(value)
            elif name == "cluster":
                found.cluster = None if _null(value) else self._object(value, _CLUSTER)
            elif name in _LISTS:
                setattr(found, name, self._list(value, _LISTS[name]))
            else:
                self._unknown(key, name, "api.InitPreseed")
        return found

    def _unknown(self, key: yaml.Node, name: str, kind: str) -> None:
        self._problem(key, f"field {name} not found in type {kind}")

    def _pairs(self, node: yaml.Node, wanted: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Return (key, its node, value's node); none, and a problem noted, if it is no map."""
        if _null(node):
            return []
        if not isinstance(node, yaml.MappingNode):
            self._mismatch(node, wanted)
            return []
        if id(node) not in self._seen:
            self._seen.add(id(node))
            self._check_keys(node)
            try:
                self._loader.flatten_mapping(node)  # merges of "<<": what is merged comes first
            except yaml.YAMLError as problem:
                self._problem(node, getattr(problem, "problem", None) or str(problem))
                return []
        found = {key.value: (str(key.value), key, value) for key, value in node.value if _scalar(key)}
        return list(found.values())

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _value in node.value:
            if not _scalar(key):
                self._mismatch(key, "string")
            elif key.value in seen:
                self._problem(key, f'key "{key.value}" already set in map')
            else:
                seen.add(key.value)

    def _list(self, node: yaml.Node, kind: str) -> list[Entry]:
        if _null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._mismatch(node, f"[]{kind}")
            return []
        return [self._object(each, kind) for each in node.value]

    def _object(self, node: yaml.Node, kind: str) -> Entry:
        fields = _FIELDS[kind]
        found = Entry({name: _ZERO[type_]() for name, type_ in fields.items()}, _line(node))
        for name, key, value in self._pairs(node, kind):
            if name not in fields:
                self._unknown(key, name, kind)
                continue
            found.values[name] = self._value(value, fields[name])
            found.lines[name] = _line(key)
        return found

    def _value(self, node: yaml.Node, type_: str) -> Any:
        if type_ == _TEXT:
            return self._text(node)
        if type_ == _FLAG:
            return self._flag(node)
        if type_ == _MEMBER_KEYS:
            return [each.values for each in self._list(node, _MEMBER_KEY)]
        if type_ == _DEVICES:
            return {name: self._keys(value) for name, _, value in self._pairs(node, _DEVICES)}
        return self._keys(node)

    def _keys(self, node: yaml.Node) -> dict[str, str]:
        return {name: self._text(value) for name, _, value in self._pairs(node, _KEYS)}

    def _lines(self, node: yaml.Node) -> dict[str, int]:
        return {key.value: _line(key) for key, _ in node.value} if isinstance(node, yaml.MappingNode) else {}

    def _text(self, node: yaml.Node) -> str:
        if _null(node):
            return ""
        if not isinstance(node, yaml.ScalarNode):
            self._mismatch(node, "string")
            return ""
        return str(node.value)

    def _flag(self, node: yaml.Node) -> bool:
        if _null(node):
            return False
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:bool":
            self._mismatch(node, "bool")
            return False
        return node.value.lower() in ("yes", "true", "on", "y")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def _null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _shown(node: yaml.Node) -> str:
    tag = "!!" + node.tag.rpartition(":")[2]
    if not isinstance(node, yaml.ScalarNode):
        return tag
    text = node.value if len(node.value) <= 10 else node.value[:7] + "..."
    return f"{tag} `{text}`"


# -- printing ---------------------------------------------------------------------------------------------------------


def as_yaml(preseed: Preseed, *, cluster_only: bool = False) -> str:
    """Return the file that would do the same; a password is never in it."""
    from incus_actors.cli.yaml_text import dump

    config = {key: value for key, value in preseed.config.items() if key != "core.trust_password"}
    sections: dict[str, Any] = {"config": Keys(config)}
    for name, kind in _LISTS.items():
        sections[name] = [_printed(each, kind) for each in getattr(preseed, name)]
    cluster = None
    if preseed.cluster is not None:
        cluster = _printed(preseed.cluster, _CLUSTER)
        cluster.pop("cluster_password")
    return dump({"cluster": cluster} if cluster_only else {**sections, "cluster": cluster})


def _printed(each: Entry, kind: str) -> dict[str, Any]:
    found = {}
    for name, type_ in _FIELDS[kind].items():
        value = each[name]
        if type_ == _KEYS:
            value = Keys(value)
        elif type_ == _DEVICES:
            value = Keys({device: Keys(keys) for device, keys in value.items()})
        found[name] = value
    return found
