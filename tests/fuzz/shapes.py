"""Headers and envelopes that look right and lie: the parts of packets that more than one target sends."""

import struct
from typing import Final

from bedsit.ipc import wire
from bedsit.ipc.manifest import DTYPES, MAX_DIMS
from bedsit.ipc.wire import ENVELOPE_BYTES, Kind
from tests.fuzz.draw import Draw

_ENVELOPE: Final = struct.Struct("<HBBIQHBBIIIQIBBH")
_KINDS: Final = (*(int(kind) for kind in Kind), 0, 8, 255)


def make_rows(draw: Draw, count: int, offsets: tuple[int, ...] = (0,)) -> bytes:
    """*count* rows; dtypes, dimensions and places mostly exist, offsets are often one of *offsets*."""
    rows = b""
    for _ in range(count):
        code = draw.below(len(DTYPES)) if draw.byte() % 8 else draw.byte()
        dims = draw.below(4) if draw.byte() % 8 else draw.below(MAX_DIMS + 2)
        place = draw.pick((0, 0, 1, 1, 1, 2))
        offset = draw.pick(offsets) if draw.byte() % 4 else draw.number()
        shape = [draw.number() for _ in range(dims)]
        rows += struct.pack(f"<BBB5xQ{dims}Q", code, place, dims, offset, *shape)
    return rows


def make_packet(
    draw: Draw,
    header: bytes,
    body: bytes,
    *,
    ident: int,
    arena: int = 0,
    tensors: int = 1,
    regions: int = 0,
    kind: int = Kind.REQUEST,
    model: int = 1,
) -> bytes:
    """A packet with these parts; now and then one field of its envelope is another one."""
    size = len(header)
    fields = [wire.MAGIC, wire.VERSION, kind, arena, ident, 0, 0, 3, size, model, 1, 0, 1, tensors, regions, 0]
    widths = (16, 8, 8, 32, 64, 16, 8, 8, 32, 32, 32, 64, 32, 8, 8, 16)
    for _ in range(draw.pick((0, 0, 0, 1, 1, 2))):
        index = draw.below(len(fields))
        fields[index] = draw.pick(_KINDS) if index == 2 else draw.number(widths[index])
    used = ENVELOPE_BYTES + size
    return (
        _ENVELOPE.pack(*(value % (1 << width) for value, width in zip(fields, widths, strict=True)))
        + header
        + (bytes(-used % wire.ALIGNMENT) + body if body else b"")
    )
