"""One message on a lane: a fixed envelope, a header, and the bytes of the tensors that travel inline.

    0      18         48              48+header   padded to 64
    ┌───────┬──────────┬────────────────┬─────┬────────────────┐
    │ route │ the rest │ header         │ pad │ inline tensors │   at most MAX_PACKET bytes in all
    └───────┴──────────┴────────────────┴─────┴────────────────┘
      envelope

The router reads the envelope and rewrites the route; it never looks further. In a REQUEST and a RESPONSE the header is
rows of numbers: names were agreed on when the model was described, and a row's place in the list says which tensor it
is. So equal headers mean equal things, and both ends remember what they have checked by the header's bytes. In every
other packet the header is msgpack. The same packet travels on every lane; both ends treat it as hostile.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from math import prod
from typing import Any, Final, NamedTuple

import msgpack

from bedsit.ipc.errors import BedsitError, error, error_from_wire
from bedsit.ipc.frames import decode_body
from bedsit.ipc.manifest import DTYPES, ITEM_BYTES, MAX_DIM, MAX_DIMS, MAX_TENSORS

MAGIC: Final = 0xBED5
VERSION: Final = 2
MAX_PACKET: Final = 64 << 10
_MAX_ITEMS: Final = 64  # in one array of a stranger's msgpack header; MAX_TENSORS is the longest there is
# Measured: inline and by reference cost the same at 8 to 16 KiB; above, a copy shows.
INLINE_BYTES: Final = 8 << 10
ALIGNMENT: Final = 64
#: A request's priority that leaves it to the model; else 0 (low) to 2 (high).
MODELS_PRIORITY: Final = 3

# magic u16, version u8, kind u8, arena u32, id u64, left u16
_ROUTE: Final = struct.Struct("<HBBIQH")
ROUTE_BYTES: Final = _ROUTE.size
# the route, then: flags u8, priority u8, header bytes u32, model u32, model version u32, deadline u64, rows u32,
# tensors u8, regions u8, reserved u16
_ENVELOPE: Final = struct.Struct("<HBBIQHBBIIIQIBBH")
ENVELOPE_BYTES: Final = _ENVELOPE.size
# dtype u8, place u8, dimensions u8, reserved, offset u64, then each dimension u64
_ROWS: Final = tuple(struct.Struct(f"<BBB5xQ{dims}Q") for dims in range(MAX_DIMS + 1))
_ROW_BYTES: Final = _ROWS[0].size
_REGION: Final = struct.Struct("<QQ")  # offset, capacity
_PADS: Final = tuple(bytes(-size % ALIGNMENT) for size in range(ALIGNMENT))
_DTYPE_CODE: Final = {name: code for code, name in enumerate(DTYPES)}


class Kind(IntEnum):
    """What a packet is."""

    REQUEST = 1
    RESPONSE = 2
    ERROR = 3
    CANCEL = 4
    READY = 5
    ASK = 6  # client → router: the header is a map with ``op``
    TOLD = 7  # router → client: the header answers an ASK


class Flag(IntEnum):
    """Bits of a request's *flags*."""

    PINNED = 1  # this version and no other; without it the version is what the client believes to be the default


class Place(IntEnum):
    """Where a tensor's bytes are: *offset* counts from the start of the inline bytes, or of the arena."""

    INLINE = 0
    ARENA = 1


class Envelope(NamedTuple):
    """The fixed part of a packet.

    *left* counts the packets of the same batch that follow this one (router to worker). *deadline_ns* is on
    CLOCK_MONOTONIC, 0 for none. *rows* is the length of the inputs' first dimension, where they are batched.
    """

    magic: int
    version: int
    kind: int
    arena: int
    id: int
    left: int
    flags: int
    priority: int
    header_bytes: int
    model: int
    model_version: int
    deadline_ns: int
    rows: int
    tensors: int
    regions: int
    reserved: int


class TensorRef(NamedTuple):
    """A tensor in a header. Fields are checked by ``decode_tensors``, the offset against no mapping yet."""

    dtype: str
    shape: tuple[int, ...]
    place: int
    offset: int
    nbytes: int


class Region(NamedTuple):
    """A part of the arena that the client reserved for an output."""

    offset: int
    capacity: int


def pack_packet(
    kind: int,
    ident: int,
    header: bytes = b"",
    body: bytes | bytearray | memoryview = b"",
    *,
    tensors: int = 0,
    regions: int = 0,
    model: int = 0,
    model_version: int = 0,
    deadline_ns: int = 0,
    arena: int = 0,
    rows: int = 0,
    priority: int = MODELS_PRIORITY,
    flags: int = 0,
) -> bytes:
    """One packet. Raises ``wire.malformed`` when it would be over MAX_PACKET."""
    packet = pack_tensors(
        kind,
        ident,
        header,
        bytes(body),
        tensors,
        regions,
        model,
        model_version,
        deadline_ns,
        arena,
        rows,
        priority,
        flags,
    )
    if len(packet) > MAX_PACKET:
        raise error("wire.malformed", f"a packet of {len(packet)} bytes is over the limit of {MAX_PACKET}")
    return packet


def pack_tensors(
    kind: int,
    ident: int,
    header: bytes,
    body: bytes | bytearray,
    tensors: int,
    regions: int = 0,
    model: int = 0,
    model_version: int = 0,
    deadline_ns: int = 0,
    arena: int = 0,
    rows: int = 0,
    priority: int = MODELS_PRIORITY,
    flags: int = 0,
) -> bytes:
    """A REQUEST or a RESPONSE; *body* may have at most INLINE_BYTES and a pad, so that it fits.

    The positional twin of ``pack_packet``: one of each is made for every call.
    """
    size = len(header)
    head = _ENVELOPE.pack(
        MAGIC,
        VERSION,
        kind,
        arena,
        ident,
        0,
        flags,
        priority,
        size,
        model,
        model_version,
        deadline_ns,
        rows,
        tensors,
        regions,
        0,
    )
    return b"".join((head, header, _PADS[(ENVELOPE_BYTES + size) % ALIGNMENT], body)) if body else head + header


def readdress(packet: bytes, kind: int, ident: int, arena: int = 0, left: int = 0) -> bytes:
    """The same packet under another id and arena: what the router does to each message that it passes on."""
    return _ROUTE.pack(MAGIC, VERSION, kind, arena, ident, left) + packet[ROUTE_BYTES:]


def read_envelope(packet: bytes | bytearray) -> Envelope:
    """The envelope of a packet from a peer. Raises ``wire.malformed``."""
    return Envelope._make(read_fields(packet))


def read_fields(packet: bytes | bytearray) -> tuple[int, ...]:
    """What ``read_envelope`` gives as a plain tuple, in the order of `Envelope`: names cost time. Raises the same."""
    size = len(packet)
    if not ENVELOPE_BYTES <= size <= MAX_PACKET:
        raise error("wire.malformed", f"a packet of {size} bytes")
    fields = _ENVELOPE.unpack_from(packet)
    if fields[0] != MAGIC or fields[1] != VERSION:
        raise error("wire.malformed", f"not a packet of wire version {VERSION}")
    if fields[8] > size - ENVELOPE_BYTES:
        raise error("wire.malformed", "the header is longer than the packet")
    return fields


def read_route(packet: bytes) -> tuple[int, int]:
    """Kind and id of a packet, where the rest of its envelope does not matter. Raises ``wire.malformed``."""
    size = len(packet)
    if not ENVELOPE_BYTES <= size <= MAX_PACKET:
        raise error("wire.malformed", f"a packet of {size} bytes")
    magic, version, kind, _, ident, _ = _ROUTE.unpack_from(packet)
    if magic != MAGIC or version != VERSION:
        raise error("wire.malformed", f"not a packet of wire version {VERSION}")
    return kind, ident


def header_of(packet: bytes | bytearray, envelope: Envelope) -> bytes:
    """The header's bytes: what equal packets have in common."""
    return bytes(packet[ENVELOPE_BYTES : ENVELOPE_BYTES + envelope.header_bytes])


def body_at(header_bytes: int) -> int:
    """Where the inline bytes of a packet begin."""
    used = ENVELOPE_BYTES + header_bytes
    return used + -used % ALIGNMENT


def body_of(packet: bytes | bytearray, envelope: Envelope) -> memoryview:
    """The inline bytes of a packet; empty when there are none."""
    return memoryview(packet)[body_at(envelope.header_bytes) :]


def read_map(packet: bytes | bytearray, envelope: Envelope, max_items: int = _MAX_ITEMS) -> Any:
    """The msgpack value in the header of an ASK, TOLD or ERROR. Raises ``wire.malformed``, also for longer arrays."""
    return decode_body(header_of(packet, envelope), max_items)


def pack_map(kind: int, ident: int, fields: object) -> bytes:
    """A packet whose header is *fields* as msgpack. Raises ``wire.malformed`` when that is too long."""
    return pack_packet(kind, ident, msgpack.packb(fields))


def pack_error(ident: int, failure: BedsitError) -> bytes:
    """An ERROR packet."""
    return pack_map(Kind.ERROR, ident, failure.to_wire())


def decode_error(packet: bytes | bytearray, envelope: Envelope) -> BedsitError:
    """The error in an ERROR packet. Raises ``wire.malformed`` when there is none."""
    return error_from_wire(read_map(packet, envelope))


def encode_tensor(dtype: str, shape: Sequence[int], place: int, offset: int) -> bytes:
    """One row of a header."""
    return _ROWS[len(shape)].pack(_DTYPE_CODE[dtype], place, len(shape), offset, *shape)


def encode_region(offset: int, capacity: int) -> bytes:
    """A reserved region, behind the rows of a REQUEST, one for each output or none at all."""
    return _REGION.pack(offset, capacity)


def decode_request(header: bytes, tensors: int, regions: int) -> tuple[tuple[TensorRef, ...], tuple[Region, ...]]:
    """The tensors and reserved regions of a REQUEST, checked in themselves. Raises ``wire.malformed``."""
    if tensors > MAX_TENSORS or regions > MAX_TENSORS:
        raise error("wire.malformed", f"at most {MAX_TENSORS} tensors")
    refs, at = _decode_rows(header, tensors)
    if len(header) - at != regions * _REGION.size:
        raise error("wire.malformed", "the header is not as long as its rows and regions")
    rooms = tuple(Region(*_REGION.unpack_from(header, at + index * _REGION.size)) for index in range(regions))
    if any(room.offset > MAX_DIM or room.capacity > MAX_DIM for room in rooms):
        raise error("wire.malformed", "a region out of range")
    return refs, rooms


def decode_response(header: bytes, tensors: int) -> tuple[TensorRef, ...]:
    """The tensors of a RESPONSE, checked in themselves. Raises ``wire.malformed``."""
    return decode_request(header, tensors, 0)[0]


def count_bytes(dtype: str, shape: Sequence[int]) -> int:
    """How many bytes a tensor of that dtype and shape takes."""
    return ITEM_BYTES[dtype] * prod(shape)


def _decode_rows(header: bytes, count: int) -> tuple[tuple[TensorRef, ...], int]:
    refs = []
    at = 0
    for _ in range(count):
        if len(header) - at < _ROW_BYTES or header[at + 2] > MAX_DIMS:
            raise error("wire.malformed", "a row is cut off, or has too many dimensions")
        row = _ROWS[header[at + 2]]
        if len(header) - at < row.size:
            raise error("wire.malformed", "a row is cut off")
        code, place, _, offset, *shape = row.unpack_from(header, at)
        at += row.size
        refs.append(_check_row(code, place, offset, tuple(shape)))
    return tuple(refs), at


def _check_row(code: int, place: int, offset: int, shape: tuple[int, ...]) -> TensorRef:
    if code < len(DTYPES) and place <= Place.ARENA and offset <= MAX_DIM:
        dtype = DTYPES[code]
        nbytes = ITEM_BYTES[dtype]
        for dim in shape:
            if dim > MAX_DIM:
                break
            nbytes *= dim or 1  # numpy and torch refuse an empty shape whose other dimensions are absurd
        else:
            if nbytes <= MAX_DIM:
                return TensorRef(dtype, shape, place, offset, 0 if 0 in shape else nbytes)
    raise error("wire.malformed", "a row out of range")
