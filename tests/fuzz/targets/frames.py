"""Frames of the admin API and of the link between daemon and router, cut anywhere."""

from collections.abc import Iterator
from typing import Any

from bedsit.ipc.frames import FrameReader, decode_body, encode_frame
from tests.fuzz.draw import Draw, pack, tell_lies
from tests.fuzz.oracle import attempt, count_parts, same

_LIMIT = 1 << 12
_GOOD: tuple[Any, ...] = (
    {"v": 1, "op": "tenant.create", "args": {"name": "acme", "cpus": 0.5}},
    {"op": "snapshot", "snapshot": bytes(300)},
    {"op": "stats", "tenants": {"acme": {"requests": 1}}},
)


def seeds() -> Iterator[bytes]:
    """Two good frames, one that was twisted, one that lies about its length, and a deep one."""
    two = b"".join(map(encode_frame, _GOOD[:2]))
    yield b"\x00\x05" + two
    yield b"\x00\x00" + two + b"\xff\xff\xff\xff"
    yield b"\x01\x03\x01\x03\x02\x00\x04"
    yield b"\x02\x40" + bytes(range(40))


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """However a stream is cut, it gives the same messages up to what is malformed; what is kept is bounded."""
    draw = Draw(data)
    kind, step = draw.byte() % 3, draw.byte() + 1
    match kind:
        case 0:
            stream = draw.rest()
        case 1:
            stream = b"".join(_frame(pack(draw.twist(draw.pick(_GOOD)))) for _ in range(1 + draw.below(3)))
        case _:
            stream = _frame(tell_lies(draw))
    whole, heard = FrameReader(_LIMIT), FrameReader(_LIMIT)
    at_once = attempt(lambda: whole.feed(stream), "wire.malformed", size=len(stream))
    messages: list[Any] | None = []
    for at in range(0, len(stream), step):
        got = attempt(lambda at=at: heard.feed(stream[at : at + step]), "wire.malformed")  # type: ignore[misc]
        assert len(heard._buffer) <= _LIMIT + 4 + step
        if got is None or messages is None:
            messages = None
            break
        messages += got
    assert (messages is None) == (at_once is None)
    if messages is not None and at_once is not None:
        assert same(messages, at_once)
        assert count_parts(messages) <= len(stream) + 1
        if all(not isinstance(message, (list, dict)) for message in messages):
            assert same([decode_body(encode_frame(message)[4:]) for message in messages], messages)
