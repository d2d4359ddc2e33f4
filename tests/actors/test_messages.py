from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incus_actors.actors.messages import (
    MessageError,
    Terminated,
    UnknownTagError,
    decode_message,
    encode_message,
    remote_message,
)


@remote_message("test.greeting")
class Greeting(msgspec.Struct, frozen=True, array_like=True):
    name: str
    times: int = 1


def test_round_trip() -> None:
    for message in (Greeting("you", 2), Terminated("a/b", 3, "normal")):
        assert decode_message(*encode_message(message)) == message


@pytest.mark.parametrize("value", [None, True, 7, -1.5, "text", b"bytes", [1, [2]], {"a": {"b": None}}])
def test_plain_values(value: object) -> None:
    assert decode_message(*encode_message(value)) == value


def test_what_is_not_registered_does_not_travel() -> None:
    class Local(msgspec.Struct):
        x: int

    for value in (object(), Local(1), {1, 2}, [object()], 2**70):
        with pytest.raises(TypeError):
            encode_message(value)


def test_unknown_tags_and_wrong_types() -> None:
    with pytest.raises(UnknownTagError):
        decode_message("test.nobody", b"\x90")
    for body in (b"", b"\x90", b"\x91\x01", msgspec.msgpack.encode(("x", "y")), b"\xc1", b"\x91" * 100_000):
        with pytest.raises(MessageError):
            decode_message("test.greeting", body)
    with pytest.raises(MessageError):
        decode_message("", b"\x91" * 100_000)


def test_an_older_and_a_newer_member_understand_each_other() -> None:
    assert decode_message("test.greeting", msgspec.msgpack.encode(("you",))) == Greeting("you", 1)
    assert decode_message("test.greeting", msgspec.msgpack.encode(("you", 2, "new"))) == Greeting("you", 2)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["", "test.greeting", "actors.terminated"]), st.binary(max_size=60))
def test_noise(tag: str, body: bytes) -> None:
    try:
        decode_message(tag, body)
    except MessageError:
        return


def test_registration_rules() -> None:
    with pytest.raises(TypeError):

        @remote_message("test.thawed")
        class Thawed(msgspec.Struct, array_like=True):
            x: int

    with pytest.raises(ValueError, match="taken"):

        @remote_message("test.greeting")
        class Other(msgspec.Struct, frozen=True, array_like=True):
            x: int

    with pytest.raises(ValueError, match="bad tag"):

        @remote_message("")
        class Nameless(msgspec.Struct, frozen=True, array_like=True):
            x: int
