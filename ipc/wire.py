"""One message on a lane: a fixed envelope, a msgpack header, and the bytes of the tensors that travel inline.

    0        40                40+header   padded to 64
    ┌──────────┬────────────────┬─────┬──────────────────┐
    │ envelope │ msgpack header │ pad │ inline tensors   │   at most MAX_PACKET bytes in all
    └──────────┴────────────────┴─────┴──────────────────┘

The envelope is all that the router reads or rewrites; the header and what follows are between client and worker, who
both treat it as hostile. The same packet travels on every lane.
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
VERSION: Final = 1
MAX_PACKET: Final = 64 << 10
_MAX_ITEMS: Final = 64  # in one array of a header; MAX_TENSORS is the longest there is
# Measured: inline and by reference cost the same at 8 to 16 KiB; above, a copy shows.
INLINE_BYTES: Final = 8 << 10
ALIGNMENT: Final = 64

# magic u16, version u8, kind u8, header bytes u32, model number u32, model version u32, id u64, deadline u64,
# arena id u32, reserved u32
_ENVELOPE: Final = struct.Struct("<HBBIIIQQII")
ENVELOPE_BYTES: Final = _ENVELOPE.size


class Kind(IntEnum):
    """What a packet is."""

    REQUEST = 1
    RESPONSE = 2
    ERROR = 3
    CANCEL = 4
    READY = 5


class Place(IntEnum):
    """Where a tensor's bytes are: *offset* counts from the start of the inline bytes, or of the arena."""

    INLINE = 0
    ARENA = 1


class Envelope(NamedTuple):
    """The fixed part. *deadline_ns* is on CLOCK_MONOTONIC, 0 for none; *model_version* 0 means the default."""

    kind: int
    header_bytes: int
    model: int
    model_version: int
    id: int
    deadline_ns: int
    arena: int


class TensorRef(NamedTuple):
    """A tensor in a packet's header. Fields are checked by ``decode_tensors``, the offset against no mapping yet."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: int
    offset: int
    nbytes: int


class Region(NamedTuple):
    """A part of the arena that the client reserved for the output *name*."""

    name: str
    offset: int
    capacity: int


def pack_packet(
    kind: Kind,
    request_id: int,
    header: bytes = b"",
    body: bytes | bytearray | memoryview = b"",
    *,
    model: int = 0,
    model_version: int = 0,
    deadline_ns: int = 0,
    arena: int = 0,
) -> bytes:
    """One packet. Raises ``wire.malformed`` when it would be over MAX_PACKET."""
    envelope = _ENVELOPE.pack(
        MAGIC, VERSION, kind, len(header), model, model_version, request_id, deadline_ns, arena, 0
    )
    if not body:
        packet = envelope + header
    else:
        used = ENVELOPE_BYTES + len(header)
        packet = b"".join((envelope, header, bytes(-used % ALIGNMENT), body))
    if len(packet) > MAX_PACKET:
        raise error("wire.malformed", f"a packet of {len(packet)} bytes is over the limit of {MAX_PACKET}")
    return packet


def readdress(packet: bytes, envelope: Envelope, request_id: int, *, model_version: int, arena: int) -> bytes:
    """The same packet under another id, version and arena: what the router does to each message it passes on."""
    return (
        _ENVELOPE.pack(
            MAGIC,
            VERSION,
            envelope.kind,
            envelope.header_bytes,
            envelope.model,
            model_version,
            request_id,
            envelope.deadline_ns,
            arena,
            0,
        )
        + packet[ENVELOPE_BYTES:]
    )


def read_envelope(packet: bytes | bytearray) -> Envelope:
    """The envelope of a packet from a peer. Raises ``wire.malformed``."""
    if not ENVELOPE_BYTES <= len(packet) <= MAX_PACKET:
        raise error("wire.malformed", f"a packet of {len(packet)} bytes")
    magic, version, kind, header_bytes, model, model_version, ident, deadline, arena, _ = _ENVELOPE.unpack_from(packet)
    if magic != MAGIC or version != VERSION:
        raise error("wire.malformed", f"not a packet of wire version {VERSION}")
    if header_bytes > len(packet) - ENVELOPE_BYTES:
        raise error("wire.malformed", "the header is longer than the packet")
    return Envelope(kind, header_bytes, model, model_version, ident, deadline, arena)


def read_header(packet: bytes | bytearray, envelope: Envelope) -> Any:
    """The msgpack value in the header. Raises ``wire.malformed``."""
    return decode_body(memoryview(packet)[ENVELOPE_BYTES : ENVELOPE_BYTES + envelope.header_bytes], _MAX_ITEMS)


def body_of(packet: bytes | bytearray, envelope: Envelope) -> memoryview:
    """The inline bytes of a packet; empty when there are none."""
    used = ENVELOPE_BYTES + envelope.header_bytes
    return memoryview(packet)[used + -used % ALIGNMENT :]


def encode_request(tensors: Sequence[TensorRef], regions: Sequence[Region]) -> bytes:
    """The header of a REQUEST."""
    data: bytes = msgpack.packb((_rows(tensors), tuple(regions)))
    return data


def encode_response(tensors: Sequence[TensorRef]) -> bytes:
    """The header of a RESPONSE."""
    data: bytes = msgpack.packb((_rows(tensors),))
    return data


def encode_error(failure: BedsitError) -> bytes:
    """The header of an ERROR."""
    data: bytes = msgpack.packb(failure.to_wire())
    return data


def decode_request(packet: bytes | bytearray, envelope: Envelope) -> tuple[list[TensorRef], list[Region]]:
    """The tensors and reserved regions of a REQUEST, checked in themselves. Raises ``wire.malformed``."""
    header = read_header(packet, envelope)
    if not isinstance(header, list) or len(header) != 2:  # noqa: PLR2004 - [tensors, regions]
        raise error("wire.malformed", "the header of a request must be [tensors, regions]")
    regions = header[1]
    if not isinstance(regions, list) or len(regions) > MAX_TENSORS:
        raise error("wire.malformed", "regions")
    return decode_tensors(header[0]), [_region(row) for row in regions]


def decode_response(packet: bytes | bytearray, envelope: Envelope) -> list[TensorRef]:
    """The tensors of a RESPONSE, checked in themselves. Raises ``wire.malformed``."""
    header = read_header(packet, envelope)
    if not isinstance(header, list) or len(header) != 1:
        raise error("wire.malformed", "the header of a response must be [tensors]")
    return decode_tensors(header[0])


def decode_error(packet: bytes | bytearray, envelope: Envelope) -> BedsitError:
    """The error in an ERROR packet."""
    return error_from_wire(read_header(packet, envelope))


def decode_tensors(rows: Any) -> list[TensorRef]:
    """Check every number of every row: types, ranges, and the product of the dimensions. Raises ``wire.malformed``."""
    if not isinstance(rows, list) or len(rows) > MAX_TENSORS:
        raise error("wire.malformed", f"at most {MAX_TENSORS} tensors")
    return [_tensor(row) for row in rows]


def count_bytes(dtype: str, shape: Sequence[int]) -> int:
    """How many bytes a tensor of that dtype and shape takes."""
    return ITEM_BYTES[dtype] * prod(shape)


def _rows(tensors: Sequence[TensorRef]) -> tuple[tuple[str, int, tuple[int, ...], int, int], ...]:
    return tuple((t.name, _DTYPE_CODE[t.dtype], t.shape, t.place, t.offset) for t in tensors)


def _tensor(row: Any) -> TensorRef:
    # Plain ifs: structural pattern matching took 10 us a request here, this takes 2.
    if type(row) is list and len(row) == 5:  # noqa: PLR2004 - the five fields
        name, code, shape, place, offset = row
        if (
            type(name) is str
            and type(code) is int
            and 0 <= code < len(DTYPES)
            and type(shape) is list
            and len(shape) <= MAX_DIMS
            and type(place) is int
            and 0 <= place <= 1
            and type(offset) is int
            and 0 <= offset <= MAX_DIM
        ):
            dtype = DTYPES[code]
            nbytes = ITEM_BYTES[dtype]
            for dim in shape:
                if type(dim) is not int or not 0 <= dim <= MAX_DIM:
                    break
                nbytes *= dim or 1  # numpy and torch refuse an empty shape whose other dimensions are absurd
            else:
                if nbytes <= MAX_DIM:
                    return TensorRef(name, dtype, tuple(shape), place, offset, 0 if 0 in shape else nbytes)
    raise error("wire.malformed", "a tensor must be [name, dtype, shape, place, offset], each in range")


def _region(row: Any) -> Region:
    if type(row) is list and len(row) == 3:  # noqa: PLR2004 - the three fields
        name, offset, capacity = row
        if (
            type(name) is str
            and type(offset) is int
            and 0 <= offset <= MAX_DIM
            and type(capacity) is int
            and 0 <= capacity <= MAX_DIM
        ):
            return Region(name, offset, capacity)
    raise error("wire.malformed", "a region must be [name, offset, capacity], each in range")


_DTYPE_CODE: Final = {name: code for code, name in enumerate(DTYPES)}
