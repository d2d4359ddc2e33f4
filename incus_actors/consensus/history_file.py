"""The history of a core as a file: msgpack, every field checked when it is read back.

Owns the format and its version; last_words.py writes it when consensus stops, simulation/replay.py reads it on any
machine. Must never raise anything but HistoryError for a file that is damaged or hostile.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.history import Heard
from incus_actors.consensus.messages import Envelope, Message
from incus_actors.consensus.state_mark import StateMark

FORMAT = 1
LARGEST = 256 << 20
_EVENTS: dict[str, type[Any]] = {cls.__name__: cls for cls in typing.get_args(ev.Event)}
_MESSAGES: dict[str, type[Any]] = {cls.__name__: cls for cls in typing.get_args(m.Message)}
_Row = tuple[int, str, msgspec.Raw, int]  # when, what, its fields, bytes left out
_Parts = tuple[int, bytes, int, int, int, int, int, str, msgspec.Raw]  # an envelope; the message by its name


class HistoryError(ValueError):
    """The file is no history that this version can read."""


class _Document(msgspec.Struct, frozen=True):
    format: int
    reason: str
    mark: StateMark | None
    events: tuple[_Row, ...]


class HistoryContent(msgspec.Struct, frozen=True):
    """What a file says: why consensus stopped, where the events begin (None: unknown) and the events."""

    reason: str
    mark: StateMark | None
    events: tuple[Heard, ...]


_encoder = msgspec.msgpack.Encoder(enc_hook=repr)  # results of transactions may be anything


def encode_history(reason: str, mark: StateMark | None, events: Sequence[Heard]) -> bytes:
    """Return the bytes of a history."""
    rows = tuple(_row(heard) for heard in events)
    return _encoder.encode(_Document(FORMAT, reason, mark, rows))


def _row(heard: Heard) -> _Row:
    event = heard.event
    body: Any = event
    if isinstance(event, ev.Receive):
        e, message = event.envelope, event.envelope.message
        head = (e.version, e.cluster_id, e.epoch, e.source, e.destination, e.incarnation, e.term)
        body = (*head, type(message).__name__, message)
    return heard.now_ms, type(event).__name__, msgspec.Raw(_encoder.encode(body)), heard.missing


def read_history(path: Path) -> HistoryContent:
    """Return what a file says. Raises HistoryError, OSError."""
    size = path.stat().st_size
    if size > LARGEST:
        raise HistoryError(f"{path} has {size} bytes: no history is larger than {LARGEST}")
    try:
        return decode_history(path.read_bytes())
    except HistoryError as error:
        raise HistoryError(f"{path} is no history of consensus: {error}") from error


def decode_history(data: bytes) -> HistoryContent:
    """Return what these bytes say. Raises HistoryError."""
    try:
        version = msgspec.msgpack.decode(data, type=dict[str, msgspec.Raw]).get("format")
        if version is None or msgspec.msgpack.decode(version, type=int) != FORMAT:
            raise HistoryError(f"it is not of format {FORMAT}")
        document = msgspec.msgpack.decode(data, type=_Document)
        events = tuple(_heard(*row) for row in document.events)
    except HistoryError:
        raise
    except (ValueError, RecursionError, OverflowError, TypeError) as error:  # msgspec's errors are ValueErrors
        raise HistoryError(str(error) or type(error).__name__) from error
    return HistoryContent(document.reason, document.mark, events)


def _heard(now_ms: int, name: str, body: msgspec.Raw, missing: int) -> Heard:
    if not 0 <= missing <= LARGEST:
        raise HistoryError(f"{missing} bytes are left out")
    if name == ev.Receive.__name__:
        return Heard(now_ms, ev.Receive(_envelope(msgspec.msgpack.decode(body, type=_Parts))), missing)
    cls = _EVENTS.get(name)
    if cls is None:
        raise HistoryError(f"unknown event {name[:40]!r}")
    return Heard(now_ms, msgspec.msgpack.decode(body, type=cls), missing)


def _envelope(parts: _Parts) -> Envelope:
    *_, name, body = parts
    cls = _MESSAGES.get(name)
    if cls is None:
        raise HistoryError(f"unknown message {name[:40]!r}")
    message: Message = msgspec.msgpack.decode(body, type=cls)
    return Envelope(*parts[:7], message)
