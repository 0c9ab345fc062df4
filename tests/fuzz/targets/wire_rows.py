"""Rows and regions: the headers of requests and of answers."""

from collections.abc import Iterator
from math import prod

from bedsit.ipc import wire
from bedsit.ipc.manifest import DTYPES, ITEM_BYTES, MAX_DIM, MAX_DIMS, MAX_TENSORS
from tests.fuzz.draw import Draw
from tests.fuzz.oracle import attempt
from tests.fuzz.shapes import make_rows


def seeds() -> Iterator[bytes]:
    """Headers as clients and workers write them, and one that is drawn."""
    row = wire.encode_tensor("float32", (3, 4), wire.Place.ARENA, 4096)
    scalar = wire.encode_tensor("int64", (), wire.Place.INLINE, 0)
    yield b"\x00\x01\x00" + row
    yield b"\x00\x02\x02" + row + scalar + wire.encode_region(8192, 4096) + wire.encode_region(0, 64)
    yield b"\x00\x00\x01" + wire.encode_region(2**40, 2**40)
    yield bytes(range(1, 120))


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """What is accepted is in range, takes the bytes that it says, and is written as it was read."""
    draw = Draw(data)
    as_it_is = draw.byte() % 2 == 0
    tensors, regions = draw.byte(), draw.byte()
    if as_it_is:
        header = draw.rest()
    else:
        tensors, regions = tensors % 34, regions % 34
        header = make_rows(draw, tensors) + b"".join(
            wire.encode_region(draw.number(), draw.number()) for _ in range(regions)
        )
    read = attempt(lambda: wire.decode_request(header, tensors, regions), "wire.malformed")
    answer = attempt(lambda: wire.decode_response(header, tensors), "wire.malformed")
    if read is None:
        return
    refs, rooms = read
    assert (len(refs), len(rooms)) == (tensors, regions)
    assert max(tensors, regions) <= MAX_TENSORS
    assert answer == (refs if not regions else None)
    for ref in refs:
        assert ref.dtype in DTYPES
        assert len(ref.shape) <= MAX_DIMS
        assert all(0 <= dim <= MAX_DIM for dim in ref.shape)
        assert ref.nbytes == ITEM_BYTES[ref.dtype] * prod(ref.shape) <= MAX_DIM
        assert ref.place in (0, 1)
        assert 0 <= ref.offset <= MAX_DIM
    assert all(0 <= number <= MAX_DIM for room in rooms for number in room)
    again = b"".join(wire.encode_tensor(ref.dtype, ref.shape, ref.place, ref.offset) for ref in refs)
    again += b"".join(wire.encode_region(*room) for room in rooms)
    assert wire.decode_request(again, tensors, regions) == read
