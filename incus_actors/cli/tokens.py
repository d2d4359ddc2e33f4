"""Tokens as people handle them: one line of base64 that the client makes of a token operation.

Owns that form for join and trust tokens, and finding the tokens that can still be used; called by cluster_tokens.py and
config_trust.py.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from incus_actors.cli.api_client import ApiClient, url
from incus_actors.cli.output import Columns

RUNNING = 103
NO_EXPIRY = "0001-01-01T00:00:00Z"

#: token field → metadata key of the operation
JOIN = {
    "server_name": "serverName",
    "fingerprint": "fingerprint",
    "addresses": "addresses",
    "secret": "secret",
    "expires_at": "expiresAt",
}


def join_token(operation: dict[str, Any]) -> dict[str, Any] | None:
    """Return the join token in an operation; None if it is something else."""
    metadata = operation.get("metadata") or {}
    if operation.get("class") != "token" or any(key not in metadata for key in JOIN.values()):
        return None
    return {field: metadata[key] for field, key in JOIN.items()}


def trust_token(operation: dict[str, Any]) -> dict[str, Any] | None:
    """Return the certificate add token in an operation; None if it is something else."""
    metadata = operation.get("metadata") or {}
    request = metadata.get("request")
    if operation.get("class") != "token" or not isinstance(request, dict) or "secret" not in metadata:
        return None
    return {
        "client_name": request.get("name", ""),
        "fingerprint": metadata.get("fingerprint", ""),
        "addresses": metadata.get("addresses", []),
        "secret": metadata["secret"],
        "expires_at": metadata.get("expiresAt") or NO_EXPIRY,
    }


def encode(token: dict[str, Any]) -> str:
    """Return the one line that is typed or piped elsewhere."""
    return base64.b64encode(json.dumps(token, separators=(",", ":"), ensure_ascii=False).encode()).decode()


def live(client: ApiClient) -> list[dict[str, Any]]:
    """Return the token operations that can still be used."""
    operations = client.get(url("operations", project="default", recursion="1"))
    if isinstance(operations, dict):  # by status, as older servers answer
        operations = [each for group in operations.values() for each in group]
    return [each for each in operations if each["class"] == "token" and each["status_code"] == RUNNING]


def columns(name_field: str) -> Columns:
    """Return the columns of a list of tokens."""
    return {
        "n": ("NAME", lambda t: t[name_field]),
        "t": ("TOKEN", encode),
        "E": ("EXPIRES AT", lambda t: " " if t["expires_at"] == NO_EXPIRY else moment(t["expires_at"])),
    }


def moment(rfc3339: str) -> str:
    """Return a time as the stock client's tables show it: 2026/11/21 04:08 UTC, in this machine's time zone."""
    import datetime
    import re

    seconds = re.sub(r"\.\d+", "", rfc3339).replace("Z", "+00:00")
    there = datetime.datetime.fromisoformat(seconds)
    return there.astimezone().strftime("%Y/%m/%d %H:%M %Z")


def for_yaml(token: dict[str, Any]) -> dict[str, Any]:
    """Return the token with its time as YAML writes times."""
    from incus_actors.cli.yaml_text import Plain

    return {**token, "expires_at": Plain(token["expires_at"])}
