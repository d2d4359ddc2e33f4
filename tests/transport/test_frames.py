from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incus_actors.transport.codec import CodecError
from incus_actors.transport.frames import (
    MAX_ASK_MS,
    ActorFrame,
    FrameKind,
    decode_error,
    decode_frame,
    encode_error,
    encode_frame,
)

FRAMES = st.builds(
    ActorFrame,
    st.sampled_from(FrameKind),
    st.text(max_size=30),
    st.text(max_size=30),
    st.integers(0, 2**63 - 1),
    st.integers(0, MAX_ASK_MS),
    st.text(max_size=64),
    st.binary(max_size=50),
)


@settings(deadline=None)
@given(FRAMES)
def test_round_trip(frame: ActorFrame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100))
def test_noise(data: bytes) -> None:
    for decode in (decode_frame, decode_error):
        try:
            decode(data)
        except CodecError:
            continue


@pytest.mark.parametrize(
    "frame",
    [
        ActorFrame(FrameKind.ASK, "", "x" * 513, 1, 1, "", b""),
        ActorFrame(FrameKind.ASK, "", "x", -1, 1, "", b""),
        ActorFrame(FrameKind.ASK, "", "x", 1, MAX_ASK_MS + 1, "", b""),
        ActorFrame(FrameKind.ASK, "", "x", 1, 1, "t" * 65, b""),
        ActorFrame(99, "", "x", 1, 1, "", b""),  # type: ignore[arg-type]
    ],
)
def test_out_of_bounds(frame: ActorFrame) -> None:
    with pytest.raises(CodecError):
        decode_frame(encode_frame(frame))


def test_errors_are_cut_to_what_decodes() -> None:
    found = decode_error(encode_error("N" * 100, 7, "t" * 100_000, "r" * 10_000))
    assert (len(found.name), found.status, len(found.text), len(found.remedy)) == (64, 500, 65536, 4096)
