"""Frames over STREAM sockets and what may be in any of our messages."""

import socket
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.frames import MAX_FRAME, FrameReader, decode_body, encode_frame, recv_frame, send_frame
from tests_support.marks import MSGPACK

_MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=10,
)


@MSGPACK(part="twin", outcome="ok")
@given(st.lists(_MESSAGES, max_size=6), st.integers(1, 40))
def test_frames_come_back_however_they_are_cut(messages: list[object], step: int) -> None:
    """A stream of frames, fed in pieces of any size, gives the messages in order."""
    stream = b"".join(encode_frame(message) for message in messages)
    reader = FrameReader()
    got = []
    for start in range(0, len(stream), step):
        got += reader.feed(stream[start : start + step])
    assert got == messages


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_our_error(data: bytes) -> None:
    """Neither the body nor the framing lets another exception out."""
    for read in (decode_body, FrameReader().feed, FrameReader(64).feed):
        try:
            read(data)
        except BedsitError as e:
            assert e.code == "wire.malformed"


@MSGPACK(part="attack", outcome="wire.malformed")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        msgpack.packb({"a": 1})[:-1],
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb(msgpack.ExtType(5, b"")),
        msgpack.packb([msgpack.ExtType(0, b"")]),
        msgpack.packb(msgpack.Timestamp(0)),
        b"\xc7\x00\xff",
        msgpack.packb({1: 2}),
        b"\x81\xc0\x01",
        b"\x81\x90\x01",
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000 + b"\x01",
        b"\x81\xa1a" * 100_000 + b"\x01",
    ],
    ids=range(18),
)
def test_what_is_no_message_of_ours_is_malformed(body: bytes) -> None:
    """Truncated, surplus bytes, extension types, odd keys, lying lengths, bombs of depth."""
    with pytest.raises(BedsitError) as caught:
        decode_body(body)
    assert caught.value.code == "wire.malformed"


@MSGPACK(part="attack", outcome="wire.malformed")
def test_the_limit_of_an_array_is_exact() -> None:
    """As many elements as allowed are read, one more is refused, and before any room is made for what is claimed.

    Else 5 KiB that claim 60 000 elements at each of a thousand levels cost the reader 100 ms.
    """
    assert decode_body(msgpack.packb([0] * 16), max_items=16) == [0] * 16
    with pytest.raises(BedsitError):
        decode_body(msgpack.packb([0] * 17), max_items=16)
    with pytest.raises(BedsitError):
        decode_body((b"\xdd" + struct.pack(">I", 60_000)) * 1000 + bytes(60_000), max_items=16)


def test_a_frame_over_the_limit_is_neither_sent_nor_read() -> None:
    """Both ends hold the limit; the reader at the announcement, before the bytes have come."""
    with pytest.raises(BedsitError):
        encode_frame(bytes(MAX_FRAME + 1))
    with pytest.raises(BedsitError):
        FrameReader(100).feed(struct.pack("<I", 101))
    near, far = socket.socketpair()
    with near, far:
        near.sendall(struct.pack("<I", MAX_FRAME + 1))
        with pytest.raises(BedsitError):
            recv_frame(far)


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 10])
def test_a_stream_that_ends_inside_a_frame_is_malformed(cut: int) -> None:
    """The end of the stream is an end only between two frames."""
    near, far = socket.socketpair()
    with far:
        with near:
            send_frame(near, {"whole": 1})
            near.sendall(encode_frame({"half": "message"})[:cut])
        assert recv_frame(far) == {"whole": 1}
        with pytest.raises(BedsitError) as caught:
            recv_frame(far)
        assert caught.value.code == "wire.malformed"


def test_a_stream_that_ends_between_frames_gives_none() -> None:
    """None means that the peer is done."""
    near, far = socket.socketpair()
    with far:
        with near:
            send_frame(near, [])
        assert recv_frame(far) == []
        assert recv_frame(far) is None
