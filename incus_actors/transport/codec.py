"""Raft envelopes on the wire: positional msgpack arrays, every field typed and bounded.

A newer release may add fields at the end, with a default: an older one ignores them, and a newer one fills in what an
older one did not send (CONSENSUS 3.13). Fields are never removed, moved, or given another type.

Owns the wire shape of `consensus/messages.py`; used by both lanes. The shapes are derived from the dataclasses, so a
new message class only has to be added to the table below. Must never raise anything but CodecError for bytes that
came from a peer, and never build an object whose types were not checked.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any

import msgspec

from incus_actors.consensus import messages as m
from incus_actors.consensus.messages import Envelope, Message

CONTROL_MAX = 1 << 20  #: bytes of one message on the control lane
BULK_MAX = 8 << 20  #: and on the bulk lane
MAX_ENTRIES = 4096
MAX_TEXT = 4096

#: Never renumber: these travel. A new class gets the next number.
MESSAGE_TYPES: dict[int, type[Any]] = {
    1: m.Hello,
    2: m.PreVote,
    3: m.PreVoteResponse,
    4: m.Vote,
    5: m.VoteResponse,
    6: m.Append,
    7: m.AppendResponse,
    8: m.Heartbeat,
    9: m.HeartbeatResponse,
    10: m.SnapshotOffer,
    11: m.SnapshotChunk,
    12: m.SnapshotAck,
    13: m.TimeoutNow,
    14: m.Goodbye,
    15: m.Propose,
    16: m.ProposeResponse,
    17: m.ReadIndex,
    18: m.ReadIndexResponse,
}


class CodecError(ValueError):
    """Bytes from a peer are not a message: malformed, of wrong types, too large, or of an unknown version."""


class VersionError(CodecError):
    """A message of a protocol version that this member does not speak."""


_encoder = msgspec.msgpack.Encoder()
_Wire = Callable[[Any], Any]

_NUMBER = Annotated[int, msgspec.Meta(ge=0)]
_TEXT = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_BYTES = Annotated[bytes, msgspec.Meta(max_length=BULK_MAX)]


def _same(value: Any) -> Any:
    return value


class _Shape:
    """How one dataclass travels: as an array of its fields in their order."""

    def __init__(self, cls: type[Any]) -> None:
        hints = typing.get_type_hints(cls)
        parts = [_wire_of(hints[field.name]) for field in fields(cls)]
        self.cls = cls
        described = [_field(field, part[0]) for field, part in zip(fields(cls), parts, strict=True)]
        self.wire: Any = msgspec.defstruct(cls.__name__, described, array_like=True, frozen=True, gc=False)
        self._names = tuple(field.name for field in fields(cls))
        self._out = [(i, part[1]) for i, part in enumerate(parts) if part[1] is not _same]
        self._in = [(i, part[2]) for i, part in enumerate(parts) if part[2] is not _same]

    def to_wire(self, value: Any) -> tuple[Any, ...]:
        """Return the tuple that stands for `value`."""
        parts = [getattr(value, name) for name in self._names]
        for i, convert in self._out:
            parts[i] = convert(parts[i])
        return tuple(parts)

    def from_wire(self, read: Any) -> Any:
        """Return the object of what was read and checked."""
        parts = msgspec.structs.astuple(read)
        if not self._in:
            return self.cls(*parts)
        values = list(parts)
        for i, convert in self._in:
            values[i] = convert(values[i])
        return self.cls(*values)


def _field(field: Field[Any], wire: Any) -> tuple[str, Any] | tuple[str, Any, Any]:
    """Return a field as msgspec describes it. A nested object has no default there: it would have to be a wire one."""
    if field.default is MISSING or is_dataclass(field.default):
        return field.name, wire
    return field.name, wire, field.default


_shapes: dict[type[Any], _Shape] = {}


def _shape(cls: type[Any]) -> _Shape:
    if cls not in _shapes:
        _shapes[cls] = _Shape(cls)
    return _shapes[cls]


def _wire_of(hint: Any) -> tuple[Any, _Wire, _Wire]:
    """Return the wire type of a field, and the conversions to and from it."""
    simple = {int: _NUMBER, str: _TEXT, bytes: _BYTES, bool: bool}.get(hint)
    if simple is not None:
        return simple, _same, _same
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint, _same, _same  # msgspec writes the value and checks it when reading
    if is_dataclass(hint) and isinstance(hint, type):
        shape = _shape(hint)
        return shape.wire, shape.to_wire, shape.from_wire
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        wire, out, into = _wire_of(args[0])
        bounded = Annotated[tuple[wire, ...], msgspec.Meta(max_length=MAX_ENTRIES)]  # type: ignore[valid-type]
        if out is _same:
            return bounded, _same, _same
        return bounded, lambda v: tuple(map(out, v)), lambda v: tuple(map(into, v))
    if origin is types.UnionType and len(args) == 2 and type(None) in args:
        wire, out, into = _wire_of(next(a for a in args if a is not type(None)))
        return (
            wire | None,
            lambda v: None if v is None else out(v),
            lambda v: None if v is None else into(v),
        )
    raise TypeError(f"no wire type for {hint!r}")


_codes: dict[type[Any], int] = {cls: code for code, cls in MESSAGE_TYPES.items()}
_bodies: dict[int, tuple[_Shape, msgspec.msgpack.Decoder[Any]]] = {
    code: (_shape(cls), msgspec.msgpack.Decoder(_shape(cls).wire)) for code, cls in MESSAGE_TYPES.items()
}
_head: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    tuple[
        _NUMBER,  # version
        Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)],  # cluster id
        _NUMBER,  # epoch
        _NUMBER,  # source
        _NUMBER,  # destination
        _NUMBER,  # incarnation
        _NUMBER,  # term
        int,  # type of the message
        msgspec.Raw,  # body
    ]
)


def encode(envelope: Envelope) -> bytes:
    """Return the bytes of an envelope. Raises TypeError for a message that is not of the vocabulary."""
    message = envelope.message
    code = _codes.get(type(message))
    if code is None:
        raise TypeError(f"{type(message).__qualname__} is not a Raft message")
    body = _shapes[type(message)].to_wire(message)
    return _encoder.encode(
        (
            envelope.version,
            envelope.cluster_id,
            envelope.epoch,
            envelope.source,
            envelope.destination,
            envelope.incarnation,
            envelope.term,
            code,
            body,
        )
    )


def decode(data: bytes | memoryview, *, limit: int = CONTROL_MAX) -> Envelope:
    """Return the envelope. Raises CodecError for anything malformed or over `limit` bytes, VersionError for a
    version that this member does not speak."""
    if len(data) > limit:
        raise CodecError(f"message of {len(data)} bytes is over the limit of {limit}")
    try:
        version, cluster_id, epoch, source, destination, incarnation, term, code, raw = _head.decode(data)
        if version != m.PROTOCOL_VERSION:
            raise VersionError(f"protocol version {version} is not spoken here")
        body = _bodies.get(code)
        if body is None:
            raise CodecError(f"unknown message type {code}")
        shape, decoder = body
        message: Message = shape.from_wire(decoder.decode(raw))
    except CodecError:
        raise
    except (ValueError, RecursionError, OverflowError, TypeError) as error:  # msgspec's errors are ValueErrors
        raise CodecError(f"malformed message: {error}") from error
    return Envelope(version, cluster_id, epoch, source, destination, incarnation, term, message)
