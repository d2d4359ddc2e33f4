"""One HTTP/1.1 request over one connection, as the stock client makes them.

Owns the bytes; called by api_client.py. It exists because importing http.client costs more than a whole
`cluster list`; it must never grow keep-alive, redirects or retries.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

_LARGEST_HEAD = 64 << 10


class Stream(Protocol):
    """A connected socket, or one wrapped in TLS."""

    def sendall(self, data: bytes, /) -> None:
        """Send everything."""

    def recv(self, size: int, /) -> bytes:
        """Return some bytes, none at the end."""

    def close(self) -> None:
        """Close."""


class WireError(OSError):
    """The peer does not speak HTTP, or stopped in the middle."""


def exchange(
    connect: Callable[[], Stream],
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
) -> tuple[int, dict[str, str], bytes]:
    """Return (status, headers with lower-case names, body). Raises OSError."""
    stream = connect()
    try:
        lines = [f"{method} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append("Connection: close")
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        stream.sendall("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        return _read(stream)
    finally:
        stream.close()


def _read(stream: Stream) -> tuple[int, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(_LARGEST_HEAD)
        if not more:
            raise WireError("EOF")
        data += more
        if len(data) > _LARGEST_HEAD and b"\r\n\r\n" not in data:
            raise WireError("malformed HTTP response")
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
        raise WireError(f'malformed HTTP response "{first[:80]}"')
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(parts[1]), headers, _body(stream, rest, headers)


def _body(stream: Stream, data: bytes, headers: dict[str, str]) -> bytes:
    length = headers.get("content-length", "")
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    chunks = [data]
    have = len(data)
    while chunked or not length.isdigit() or have < int(length):
        more = stream.recv(256 << 10)
        if not more:
            break
        chunks.append(more)
        have += len(more)
    whole = b"".join(chunks)
    if chunked:
        return _unchunked(whole)
    if length.isdigit() and len(whole) < int(length):
        raise WireError("unexpected EOF")
    return whole


def _unchunked(data: bytes) -> bytes:
    found: list[bytes] = []
    while True:
        size_line, separator, data = data.partition(b"\r\n")
        try:
            size = int(size_line.partition(b";")[0], 16)
        except ValueError:
            raise WireError("malformed chunked encoding") from None
        if not separator or len(data) < size:
            raise WireError("unexpected EOF")
        if not size:
            return b"".join(found)
        found.append(data[:size])
        data = data[size + 2 :]


def unix_stream(path: str, timeout_s: float) -> socket.socket:
    """Return a connected unix socket. Raises OSError."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout_s)
    try:
        stream.connect(path)
    except OSError:
        stream.close()
        raise
    return stream
