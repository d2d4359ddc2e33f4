"""A small blocking client of a member's unix socket.

Owns one request per connection, as the stock client makes them; called by the lab only. Must never retry by
itself: who measures decides what counts.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any


class RequestFailedError(Exception):
    """The member answered with an error, or an operation failed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("unix.socket", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class UnixClient:
    """Requests over one member's unix socket. Raises RequestFailedError, or OSError when nobody answers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def request(self, method: str, path: str, body: object = None, *, timeout_s: float = 30.0) -> Any:
        """Return the metadata of the answer; an operation's object for asynchronous answers."""
        return self.exchange(method, path, body, timeout_s=timeout_s)[0]

    def exchange(
        self, method: str, path: str, body: object = None, *, if_match: str = "", timeout_s: float = 30.0
    ) -> tuple[Any, str]:
        """Return metadata and ETag of the answer; `if_match` is the ETag that the object must still have."""
        connection = _UnixConnection(self.path, timeout_s)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if if_match:
            headers["If-Match"] = if_match
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, headers)
            answer = connection.getresponse()
            status, raw, etag = answer.status, answer.read(), answer.headers.get("ETag", "")
        except http.client.HTTPException as problem:
            raise ConnectionError(f"{method} {path}: {problem!r}") from problem
        finally:
            connection.close()
        envelope = json.loads(raw)
        if status >= 400 or envelope.get("type") == "error":
            raise RequestFailedError(status, str(envelope.get("error", raw[:200])))
        return envelope.get("metadata"), etag

    def get(self, path: str, *, timeout_s: float = 30.0) -> Any:
        """GET."""
        return self.request("GET", path, timeout_s=timeout_s)

    def run(self, method: str, path: str, body: object = None, *, timeout_s: float = 60.0) -> Any:
        """Send a request that may answer with an operation, wait for its end, return its object.

        Raises RequestFailedError with the operation's error text.
        """
        answer = self.request(method, path, body, timeout_s=timeout_s)
        if not (isinstance(answer, dict) and "status_code" in answer and "id" in answer):
            return answer
        wait = f"/1.0/operations/{answer['id']}/wait?timeout={timeout_s:g}"
        operation = self.request("GET", wait, timeout_s=timeout_s + 5)
        if operation["status_code"] != 200:
            raise RequestFailedError(operation["status_code"], operation["err"] or operation["status"])
        return operation

    def upload(self, path: str, file: Path, headers: dict[str, str], *, timeout_s: float = 120.0) -> Any:
        """POST a file as an octet stream and return the operation's object."""
        connection = _UnixConnection(self.path, timeout_s)
        try:
            with file.open("rb") as content:
                connection.request(
                    "POST",
                    path,
                    content,
                    {"Content-Type": "application/octet-stream", "Connection": "close", **headers},
                )
                answer = connection.getresponse()
                envelope = json.loads(answer.read())
        finally:
            connection.close()
        if envelope.get("type") == "error":
            raise RequestFailedError(int(envelope["error_code"]), envelope["error"])
        return envelope["metadata"]

    def wait_until_ready(self, *, timeout_s: float = 30.0) -> float:
        """Return the seconds it took until the member answered. Raises TimeoutError."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout_s:
            try:
                self.get("/internal/ready", timeout_s=5)
            except (OSError, RequestFailedError, ValueError):
                time.sleep(0.01)
            else:
                return time.monotonic() - begin
        raise TimeoutError(f"{self.path}: not ready after {timeout_s:g} s")
