"""The CLI's client of the REST API: the unix socket, and HTTPS remotes whose certificate is pinned.

Owns requests, error texts and waiting for operations; called by every command. Must never retry a write by itself,
and never talk to a TLS server whose certificate is not the one it was told to expect.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from incus_actors.cli.wire import Stream, exchange, unix_stream

TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 10.0


class ApiFailureError(Exception):
    """The server answered with an error, or an operation failed: its text is what the user reads."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(Exception):
    """Nobody answers, or somebody else than expected."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer."""

    status: int
    metadata: Any
    etag: str
    operation: str


def url(*parts: str, **parameters: str) -> str:
    """Return "/1.0/…" with every part quoted, and the parameters that are not empty."""
    path = "/".join(["/1.0", *(quote(part, safe="") for part in parts)])
    given = {name.replace("_", "-"): value for name, value in parameters.items() if value}
    return f"{path}?{urlencode(given)}" if given else path


class ApiClient:
    """Requests to one server. Raises ApiFailureError, UnreachableError."""

    def __init__(self, connect: Callable[[float], Stream], base: str, *, host: str = "unix.socket") -> None:
        self._connect = connect
        self._base = base
        self._host = host
        self.project = ""  #: added to what depends on a project

    def request(
        self, method: str, path: str, body: object = None, *, etag: str = "", timeout_s: float = TIMEOUT_S
    ) -> Answer:
        """Return the answer to one request; an operation is not waited for."""
        headers = {"Host": self._host, "User-Agent": "incus-actors", "Accept": "application/json"}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if etag:
            headers["If-Match"] = etag
        try:
            status, got, raw = exchange(lambda: self._connect(timeout_s), method, path, payload, headers)
        except OSError as problem:
            raise UnreachableError(f'{method.capitalize()} "{self._base}{path}": {reason(problem)}') from problem
        try:
            envelope = json.loads(raw)
            failed = status >= 400 or envelope["type"] == "error"
        except (ValueError, KeyError, TypeError):
            raise ApiFailureError(status, f"Failed to fetch {self._base}{path}: {status}") from None
        if failed:
            raise ApiFailureError(status, str(envelope.get("error", "")))
        return Answer(status, envelope.get("metadata"), got.get("etag", ""), str(envelope.get("operation") or ""))

    def get(self, path: str, *, timeout_s: float = TIMEOUT_S) -> Any:
        """GET; return the metadata."""
        return self.request("GET", path, timeout_s=timeout_s).metadata

    def get_with_etag(self, path: str) -> tuple[Any, str]:
        """GET; return the metadata and what If-Match takes."""
        answer = self.request("GET", path)
        return answer.metadata, answer.etag

    def find(self, path: str) -> Any | None:
        """GET; return the metadata, None for 404."""
        try:
            return self.get(path)
        except ApiFailureError as failure:
            if failure.status == 404:
                return None
            raise

    def put(self, path: str, body: object, *, etag: str = "") -> Any:
        """PUT."""
        return self.request("PUT", path, body, etag=etag).metadata

    def post(self, path: str, body: object) -> Any:
        """POST; return the metadata, the operation object of an asynchronous answer."""
        return self.request("POST", path, body).metadata

    def delete(self, path: str) -> None:
        """DELETE."""
        self.request("DELETE", path)

    def run(self, method: str, path: str, body: object = None, *, etag: str = "") -> Any:
        """Send a request that answers with an operation, wait for its end, return its object."""
        answer = self.request(method, path, body, etag=etag)
        if not answer.operation:
            return answer.metadata
        operation = self.get(f"{answer.operation}/wait?timeout=-1")
        if operation["status_code"] != 200:
            raise ApiFailureError(operation["status_code"], operation["err"] or operation["status"])
        return operation


def reason(problem: OSError) -> str:
    """Return why a connection failed, in a few words."""
    if isinstance(problem, TimeoutError):
        return "i/o timeout"
    return problem.strerror.lower() if problem.strerror else str(problem) or type(problem).__name__


def unix_client(path: Path) -> ApiClient:
    """Return a client of the unix socket at `path`; nothing is connected yet."""

    def connect(timeout_s: float) -> Stream:
        try:
            return unix_stream(str(path), timeout_s)
        except OSError as problem:
            raise ConnectionError(f"dial unix {path}: connect: {reason(problem)}") from problem

    return ApiClient(connect, "http://unix.socket")


def tls_client(address: str, *, expected_der: bytes | None, certificate: tuple[Path, Path] | None) -> ApiClient:
    """Return a client of https://`address` (host:port) that shows `certificate` (files) and pins the server's.

    Without `expected_der` the chain is verified as browsers do.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")

    def connect(timeout_s: float) -> Stream:
        stream = tls_stream(host, int(port), certificate, pinned=expected_der is not None)
        shown = stream.getpeercert(binary_form=True)
        if expected_der is not None and shown != expected_der:
            stream.close()
            raise ConnectionError(f"the server at {address} does not show the certificate that is trusted for it")
        stream.settimeout(timeout_s)
        connected: Stream = stream
        return connected

    return ApiClient(connect, f"https://{address}", host=address)


def tls_stream(host: str, port: int, certificate: tuple[Path, Path] | None, *, pinned: bool) -> Any:
    """Return a connected TLS 1.3 socket. Raises OSError."""
    import ssl

    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(*certificate)
    try:
        raw = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
    except OSError as problem:
        raise ConnectionError(f"dial tcp {host}:{port}: connect: {reason(problem)}") from problem
    try:
        return context.wrap_socket(raw, server_hostname=host)
    except OSError:
        raw.close()
        raise


def server_certificate(address: str) -> bytes:
    """Return the certificate (DER) that host:port shows; nothing is verified. Raises OSError."""
    host, _, port = address.rpartition(":")
    stream = tls_stream(host.strip("[]"), int(port), None, pinned=True)
    try:
        shown = stream.getpeercert(binary_form=True)
    finally:
        stream.close()
    if not shown:
        raise ConnectionError("no certificate")
    return bytes(shown)
