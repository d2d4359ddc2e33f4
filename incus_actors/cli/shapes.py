"""API objects in the key order in which the stock client prints them.

Owns that order; called before any JSON or YAML is shown, so that a server's own order or extra fields never matter.
"""

from __future__ import annotations

from typing import Any


class Keys(dict[str, Any]):
    """A map whose keys are data: sorted bytewise in JSON (as it is held), naturally in YAML (yaml_text.py)."""

    __slots__ = ()


#: key → what the stock client shows when the server leaves it out
_MEMBER: dict[str, Any] = {
    "roles": [],
    "failure_domain": "",
    "description": "",
    "config": {},
    "groups": [],
    "server_name": "",
    "url": "",
    "database": False,
    "status": "",
    "message": "",
    "architecture": "",
}
MEMBER_WRITABLE = ("roles", "failure_domain", "description", "config", "groups")

_CERTIFICATE: dict[str, Any] = {
    "name": "",
    "type": "",
    "restricted": False,
    "projects": [],
    "certificate": "",
    "description": "",
    "fingerprint": "",
}

_GROUP: dict[str, Any] = {"description": "", "members": [], "name": ""}


def _shaped(shape: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return {key: default if given.get(key) is None else _sorted(given[key]) for key, default in shape.items()}


def _sorted(value: Any) -> Any:
    return Keys(sorted(value.items())) if isinstance(value, dict) else value


def member(given: dict[str, Any]) -> dict[str, Any]:
    """A cluster member."""
    return _shaped(_MEMBER, given)


def certificate(given: dict[str, Any]) -> dict[str, Any]:
    """An entry of the trust store."""
    return _shaped(_CERTIFICATE, given)


def group(given: dict[str, Any]) -> dict[str, Any]:
    """A cluster group."""
    return _shaped(_GROUP, given)


def member_state(given: dict[str, Any]) -> dict[str, Any]:
    """A member's state; the machine's figures keep the server's order."""
    return {"sysinfo": given.get("sysinfo", {}), "storage_pools": _sorted(given.get("storage_pools") or {})}


def member_put(given: dict[str, Any]) -> dict[str, Any]:
    """What of a member can be written."""
    return {key: given.get(key, _MEMBER[key]) for key in MEMBER_WRITABLE}
