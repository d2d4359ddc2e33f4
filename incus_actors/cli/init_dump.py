"""`admin init --dump`: the present configuration as a preseed.

Owns which objects are shown, with the stock client's requests; the text is one that `--preseed` takes back unchanged.
"""

from __future__ import annotations

from typing import Any

from incus_actors.cli.api_client import ApiClient, url
from incus_actors.cli.shapes import Keys

_HIDDEN = frozenset({"core.trust_password"})


def dumped(client: ApiClient) -> str:
    """Return the YAML."""
    from incus_actors.cli.yaml_text import dump

    config = client.get("/1.0").get("config") or {}
    networks = client.get(url("networks", project="default", recursion="1"))
    pools = client.get(url("storage-pools", recursion="1"))
    profiles = client.get(url("profiles", recursion="1"))
    projects = client.get(url("projects", recursion="1"))
    sections: dict[str, Any] = {
        "config": Keys({key: value for key, value in config.items() if key not in _HIDDEN}),
        "networks": [
            {
                "config": _keys(each),
                "description": each["description"],
                "name": each["name"],
                "type": each["type"],
                "project": "default",
            }
            for each in networks
            if each["managed"]
        ],
        "storage_pools": [_only(each, "config", "description", "name", "driver") for each in pools],
        "storage_volumes": [],
        "profiles": [{**_only(each, "config", "description", "devices", "name"), "project": ""} for each in profiles],
        "projects": [_only(each, "config", "description", "name") for each in projects],
    }
    return dump(sections)


def _keys(each: dict[str, Any]) -> Keys:
    return Keys({key: value for key, value in (each.get("config") or {}).items() if not key.startswith("volatile.")})


def _only(each: dict[str, Any], *fields: str) -> dict[str, Any]:
    found: dict[str, Any] = {field: each.get(field) for field in fields}
    found["config"] = _keys(each)
    if "devices" in found:
        found["devices"] = Keys({name: Keys(keys) for name, keys in (found["devices"] or {}).items()})
    return found
