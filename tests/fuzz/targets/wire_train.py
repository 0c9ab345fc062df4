"""Trains: several packets in one, of a worker to its router."""

import struct
from collections.abc import Iterator

from bedsit.ipc.train import MAGIC, MOST, couple, is_train, pack_train, split_train
from tests.fuzz.draw import Draw
from tests.fuzz.oracle import attempt

_COUNTS = (2, 3, 63, 64, 0, 1, 65, 255, 0xFFFF)


def seeds() -> Iterator[bytes]:
    """Good trains as they are, of pieces, and with lengths and counts that lie."""
    for packets in ([b"one", b"three"], [b"", b""], [b"x"] * MOST):
        yield b"\x00" + pack_train(packets)
    yield bytes([1, 3]) + b"one" + bytes([0, 5]) + b"three"
    for lie in range(8):
        yield bytes([2, lie, 0, 0, 1, 1, 2, 2, 3]) + b"abc"
    for count in range(len(_COUNTS)):
        yield bytes([2, 7, count, 0, 2, 1, 3]) + b"abc"
        yield bytes([3, count]) + bytes([0, 1] * 70)


def _make(draw: Draw) -> bytes:
    """A train of a few packets, most of it right."""
    packets = [draw.piece() for _ in range(2 + draw.below(3))]
    lengths = [len(packet) if draw.byte() % 4 else draw.number(32) for packet in packets]
    count = len(packets) if draw.byte() % 4 else draw.pick(_COUNTS)
    made = struct.pack(f"<HH{len(lengths)}I", MAGIC, count, *lengths) + b"".join(packets)
    return made[: len(made) - draw.below(4)] if draw.flag() else made + draw.piece()


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """What is split was all there, and makes the same train again; what is no train is malformed, in any buffer."""
    draw = Draw(data)
    match draw.byte() % 4:
        case 0:
            train = draw.rest()
        case 1:
            packets = []
            while draw.left:
                packets.append(draw.piece())
            for coupled in couple(packets):
                assert len(coupled) == 1 or split_train(pack_train(coupled)) == coupled
            return
        case 2:
            train = _make(draw)
        case _:
            count = draw.pick(_COUNTS)
            train = struct.pack("<HH", MAGIC, count) + draw.rest()
    inside = memoryview(b"\xee" * 300 + train + b"\xee" * 300)[300 : 300 + len(train)]
    for buffer in (train, bytearray(train), inside):
        split = attempt(lambda buffer=buffer: split_train(buffer), "wire.malformed", size=len(train))  # type: ignore[misc]
        assert split is None or (is_train(buffer) and pack_train(split) == train)
        assert split is None or 2 <= len(split) <= MOST
