"""Messages that may cross from member to member, and the ones that the runtime itself sends.

Owns the registry of tags; everyone who defines such a message imports `remote_message`. Must never let what a peer
sent become an object that was not registered or whose types were not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

MAX_TAG = 64  #: characters

_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {}
_classes: dict[str, type[msgspec.Struct]] = {}
_tags: dict[type, str] = {}
_encoder = msgspec.msgpack.Encoder()
_plain_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()
_PLAIN = (type(None), bool, int, float, str, bytes, list, tuple, dict)


class MessageError(ValueError):
    """A payload is of an unknown tag, or malformed for its tag."""


class UnknownTagError(MessageError):
    """The peer speaks of something that this member does not know (an older version, perhaps)."""


def remote_message(tag: str) -> Callable[[type[S]], type[S]]:
    """Register a message that may travel to another member.

    Use it on `class X(msgspec.Struct, frozen=True, array_like=True)`. New fields go last, with a default: a member
    of the version before then still understands. Raises TypeError or ValueError for a class or tag that can't be.
    """

    def register(cls: type[S]) -> type[S]:
        config = cls.__struct_config__
        if not (config.frozen and config.array_like):
            raise TypeError(f"{cls.__name__}: a remote message is frozen=True, array_like=True")
        if not tag or len(tag) > MAX_TAG or not tag.isascii():
            raise ValueError(f"{cls.__name__}: bad tag {tag!r}")
        known = _classes.get(tag)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"tag {tag!r} is taken by {known.__qualname__}")
        _decoders[tag] = msgspec.msgpack.Decoder(cls)
        _classes[tag] = cls
        _tags[cls] = tag
        return cls

    return register


def encode_message(message: object) -> tuple[str, bytes]:
    """Return tag and body of a registered message, or an empty tag for plain data (None, numbers, text, bytes,
    lists and dicts of these). Raises TypeError for anything else: it can't travel."""
    tag = _tags.get(type(message))
    if tag is None:
        if not isinstance(message, _PLAIN):
            raise TypeError(f"{type(message).__qualname__} is not a @remote_message and can't leave this member")
        tag = ""
    try:
        return tag, _encoder.encode(message)
    except (OverflowError, ValueError, RecursionError) as error:
        raise TypeError(f"{type(message).__qualname__} can't be encoded: {error}") from error


def decode_message(tag: str, body: bytes) -> object:
    """Return the message. Raises UnknownTagError, or MessageError when types or structure are wrong."""
    if tag:
        decoder = _decoders.get(tag)
        if decoder is None:
            raise UnknownTagError(f"unknown message tag {tag[:MAX_TAG]!r}")
    else:
        decoder = _plain_decoder
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError, TypeError, OverflowError) as error:  # msgspec's errors are ValueErrors
        raise MessageError(f"malformed {tag or 'plain value'}: {error}") from error


@remote_message("actors.terminated")
class Terminated(msgspec.Struct, frozen=True, array_like=True):
    """What a watcher is told, once: that life of the watched actor is over.

    `reason`: "normal" (it stopped itself), "shutdown" (it was stopped), "crashed: …" (a supervisor may already have
    started it anew, with a fresh state: watch again), "noproc" (there was nothing to watch), "unreachable" (its
    member can't be reached; the actor may live).
    """

    path: str
    member: int
    reason: str
