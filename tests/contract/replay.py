"""Replays one recorded command against a member and says where the answers differ.

Compared are the status, the envelope, the text of errors, and the fields of what comes back with their types: not
values that belong to the other machine (uuids, times, addresses, numbers), nor maps whose keys are data.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

#: Objects whose keys are data: names of pools, config keys, resources ...
MAPS = frozenset({"config", "resources", "storage_pools", "devices", "properties", "kernel_features", "lxc_features"})
#: What an operation tells of itself depends on what it does.
OPAQUE = "metadata"
ENVELOPE = ("type", "status", "status_code", "error_code", "error")
_NAMES = re.compile(r"\bnode(\d)\b")
_CHANGING = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<fingerprint>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z| \+0000 UTC)?"), "<time>"),
    (re.compile(r"\b\d+\.\d+\.\d+\.\d+(?::\d+)?\b"), "<address>"),
)


BESIDE = Path(__file__).parents[3] / "shared" / "contract"


def captures_directory() -> Path | None:
    """Return $INCUS_ACTORS_CONTRACT/captures, or those beside the repository; None if there are none."""
    root = Path(os.environ.get("INCUS_ACTORS_CONTRACT") or BESIDE)
    return root / "captures" if (root / "captures").is_dir() else None


def ours(value: Any) -> Any:
    """Our lab calls its members m1, m2, m3."""
    return json.loads(_NAMES.sub(r"m\1", json.dumps(value)))


def normalised(text: str) -> str:
    """Return `text` without what differs from machine to machine."""
    for pattern, mark in _CHANGING:
        text = pattern.sub(mark, text)
    return text


def differences(recorded: Any, answered: Any, where: str = "") -> list[str]:
    """Return where the shape of `answered` is not that of `recorded`."""
    name = where.rpartition(".")[2]
    if recorded is None or answered is None:
        return []  # null and empty are the same to Go
    if name == OPAQUE:
        return []
    if type(recorded) is not type(answered) and not (
        isinstance(recorded, int | float) and isinstance(answered, int | float)
    ):
        return [f"{where}: {type(recorded).__name__} became {type(answered).__name__}"]
    if isinstance(recorded, dict):
        found = []
        if name in MAPS:
            pairs = [(next(iter(recorded.values()), None), next(iter(answered.values()), None))]
            return [d for a, b in pairs for d in differences(a, b, f"{where}.*")]
        lacking, more = sorted(recorded.keys() - answered.keys()), sorted(answered.keys() - recorded.keys())
        found += [f"{where}.{key}: missing" for key in lacking] + [f"{where}.{key}: not in Incus" for key in more]
        for key in sorted(recorded.keys() & answered.keys()):
            found += differences(recorded[key], answered[key], f"{where}.{key}")
        return found
    if isinstance(recorded, list) and recorded and answered:
        return differences(recorded[0], answered[0], f"{where}[]")
    return []


def _first(operations: Any) -> Any:
    """Return any operation of a list by status, None if there is none."""
    return next((found[0] for found in (operations or {}).values() if found), None)


class Player:
    """Speaks HTTP over one member's unix socket, remembering ETags as the stock client does."""

    def __init__(self, unix_socket: Path) -> None:
        self._socket = unix_socket
        self._etags: dict[str, str] = {}

    def send(self, method: str, path: str, body: Any, *, if_match: bool) -> tuple[int, Any]:
        """Return status and decoded body."""
        connection = http.client.HTTPConnection("unix.socket", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(20)
        connection.sock.connect(str(self._socket))
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if if_match:
            headers["If-Match"] = self._etags.get(path, "")
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            etag = response.getheader("Etag")
            if etag:
                self._etags[path] = etag
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()


def replay(capture: dict[str, Any], player: Player) -> list[str]:
    """Send what the stock client sent; return the differences of every answer."""
    found: list[str] = []
    for number, exchange in enumerate(capture["exchanges"], start=1):
        request, response = exchange.get("request"), exchange.get("response")
        if not request or not response or response["status"] == 101 or not isinstance(response.get("body"), dict):
            continue
        body = ours(request.get("body"))
        given = {name.lower() for name, _ in request["headers"]}
        status, answer = player.send(request["method"], ours(request["path"]), body, if_match="if-match" in given)
        where = f"{number} {request['method']} {request['path']}"
        recorded = ours(response["body"])
        if status != response["status"]:
            text = answer.get("error", "") if isinstance(answer, dict) else answer
            found.append(f"{where}: status {response['status']} became {status}: {text}")
            continue
        found += [
            f"{where}: {key} {recorded.get(key)!r} became {answer.get(key)!r}"
            for key in ENVELOPE
            if normalised(str(recorded.get(key))) != normalised(str(answer.get(key)))
        ]
        if request["path"].partition("?")[0] == "/1.0":
            continue  # hardware, kernel and extensions of another machine: test_server_routes looks at these fields
        if request["path"].partition("?")[0] == "/1.0/operations":  # {"running": [...], ...}
            recorded, answer = ({"metadata": _first(b["metadata"])} for b in (recorded, answer))
        found += [f"{where}{text}" for text in differences(recorded.get("metadata"), answer.get("metadata"))]
    return found
