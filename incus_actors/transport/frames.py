"""Frames of the bulk lane: actor messages between members.

Owns their shape and its checks; made and read by `actors/remoting.py`, carried by `bulk_lane.py`. Bodies stay opaque
here (the actor registry decodes them). Must never raise anything but CodecError for what a peer sent.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

from incus_actors.transport.codec import CodecError

MAX_ASK_MS = 3_600_000  #: nobody may ask for longer than an hour

_Path = Annotated[str, msgspec.Meta(max_length=512)]
_Number = Annotated[int, msgspec.Meta(ge=0)]


class FrameKind(IntEnum):
    """What an actor frame is."""

    TELL = 1
    ASK = 2
    REPLY = 3
    ERROR = 4  #: the answer to an ask is an error; body: [class, status, text, remedy]
    WATCH = 5
    UNWATCH = 6
    TERMINATED = 7  #: body: the reason


class ActorFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One frame. `source` is the actor that watches (else empty), `target` the actor it is for; `deadline_ms` is the
    time left, relative because clocks differ; `correlation` is unique per asking member and process."""

    kind: FrameKind
    source: _Path
    target: _Path
    correlation: _Number
    deadline_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_ASK_MS)]
    tag: Annotated[str, msgspec.Meta(max_length=64)]
    body: bytes


class ErrorBody(msgspec.Struct, frozen=True, array_like=True):
    """An ApiError on its way."""

    name: Annotated[str, msgspec.Meta(max_length=64)]
    status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    text: Annotated[str, msgspec.Meta(max_length=65536)]
    remedy: Annotated[str, msgspec.Meta(max_length=4096)] = ""


_encoder = msgspec.msgpack.Encoder()
_frames = msgspec.msgpack.Decoder(ActorFrame)
_errors = msgspec.msgpack.Decoder(ErrorBody)


def encode_frame(frame: ActorFrame) -> bytes:
    """Return the bytes of a frame."""
    return _encoder.encode(frame)


def decode_frame(data: bytes | memoryview) -> ActorFrame:
    """Return a checked frame. Raises CodecError."""
    try:
        return _frames.decode(data)
    except (ValueError, RecursionError, OverflowError) as error:
        raise CodecError(f"malformed actor frame: {error}") from error


def encode_error(name: str, status: int, text: str, remedy: str) -> bytes:
    """Return the body of an ERROR frame; overlong texts are cut."""
    status = status if 400 <= status <= 599 else 500
    return _encoder.encode(ErrorBody(name[:64], status, text[:65536], remedy[:4096]))


def decode_error(body: bytes) -> ErrorBody:
    """Return the parts of an ERROR body. Raises CodecError."""
    try:
        return _errors.decode(body)
    except (ValueError, RecursionError, OverflowError) as error:
        raise CodecError(f"malformed error body: {error}") from error
