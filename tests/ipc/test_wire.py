"""Packets: what goes in comes out, and no bytes from a peer do harm."""

import struct
from math import prod
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedsit.ipc import wire
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import DTYPES, ITEM_BYTES, MAX_DIM, MAX_DIMS, MAX_TENSORS
from bedsit.ipc.wire import (
    ENVELOPE_BYTES,
    INLINE_BYTES,
    MAX_PACKET,
    ROUTE_BYTES,
    Envelope,
    Flag,
    Kind,
    Place,
    Region,
    TensorRef,
)
from tests_support.marks import MSGPACK, SHAPES
from tests_support.packets import row_of

_U8 = st.integers(0, 2**8 - 1)
_U16 = st.integers(0, 2**16 - 1)
_U32 = st.integers(0, 2**32 - 1)
_U64 = st.integers(0, 2**64 - 1)
_OFFSETS = st.integers(0, MAX_DIM)
_REGIONS = st.lists(st.builds(Region, _OFFSETS, _OFFSETS), max_size=MAX_TENSORS)
_FIELDS = st.fixed_dictionaries(
    {
        "tensors": _U8,
        "regions": _U8,
        "model": _U32,
        "model_version": _U32,
        "deadline_ns": _U64,
        "arena": _U32,
        "rows": _U32,
        "priority": _U8,
        "flags": _U8,
    }
)


@st.composite
def _refs(draw: st.DrawFn) -> TensorRef:
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 30) | st.just(1), max_size=MAX_DIMS)))
    while ITEM_BYTES[dtype] * prod(dim or 1 for dim in shape) > MAX_DIM:
        shape = shape[1:]
    return TensorRef(dtype, shape, draw(st.sampled_from(Place)), draw(_OFFSETS), ITEM_BYTES[dtype] * prod(shape))


def _header(refs: Any, regions: Any = ()) -> bytes:
    return b"".join([*map(row_of, refs), *(wire.encode_region(*region) for region in regions)])


def _row(
    dtype: int = 8, shape: tuple[int, ...] = (1,), place: int = 0, offset: int = 0, dims: int | None = None
) -> bytes:
    """A row of a header with any numbers in it; *dims* is how many dimensions it claims."""
    count = len(shape) if dims is None else dims
    return struct.pack(f"<BBB5xQ{len(shape)}Q", dtype, place, count, offset, *shape)


def _refusal(read: Any, *arguments: Any) -> str:
    with pytest.raises(BedsitError) as caught:
        read(*arguments)
    return caught.value.code


def test_the_bytes_of_version_two_never_change() -> None:
    """Programs of different builds speak to each other: one packet, and one row of each kind, byte by byte."""
    packet = wire.pack_packet(
        Kind.REQUEST,
        0x0102030405060708,
        _header([TensorRef("int64", (2, 3), Place.ARENA, 4096, 48)], [Region(8192, 4096)]),
        b"body",
        tensors=1,
        regions=1,
        model=0x11121314,
        model_version=0x21222324,
        deadline_ns=0x3132333435363738,
        arena=0x41424344,
        rows=0x51525354,
        priority=2,
        flags=Flag.PINNED,
    )
    assert (
        packet.hex(" ", 2).replace(" ", "")
        == (
            "d5be0201444342410807060504030201" + "0000"  # magic, version, kind, arena, id, left: the route
            "0102" + "30000000" + "14131211" + "24232221" + "3837363534333231" + "54535251" + "0101" + "0000"
            "05010200000000000010000000000000" + "02000000000000000300000000000000"  # the row
            "00200000000000000010000000000000" + "00" * 32 + b"body".hex()  # the region, and from byte 128 on the body
        )
    )
    assert (ENVELOPE_BYTES, ROUTE_BYTES, wire.VERSION, MAX_PACKET) == (48, 18, 2, 64 << 10)


@settings(deadline=None)
@given(st.sampled_from(Kind), _U64, st.binary(max_size=200), st.binary(max_size=200), _FIELDS)
def test_a_packet_comes_back(kind: Kind, ident: int, header: bytes, body: bytes, fields: dict[str, int]) -> None:
    """Every field, the header and the body are read as they were written; the body starts on a multiple of 64."""
    packet = wire.pack_packet(kind, ident, header, body, **fields)
    envelope = wire.read_envelope(packet)
    assert (envelope.kind, envelope.id, envelope.header_bytes, envelope.left) == (kind, ident, len(header), 0)
    assert {name: getattr(envelope, name) for name in fields} == fields
    assert wire.header_of(packet, envelope) == header
    assert bytes(wire.body_of(packet, envelope)) == body
    assert not body or (len(packet) - len(body)) % 64 == 0
    assert not body or len(packet) - len(body) == wire.body_at(len(header))


@settings(deadline=None)
@given(st.sampled_from(Kind), _U64, st.binary(max_size=100), st.binary(max_size=100), _FIELDS)
def test_both_ways_of_packing_give_the_same_packet(
    kind: Kind, ident: int, header: bytes, body: bytes, fields: dict[str, int]
) -> None:
    """The positional twin differs in nothing, and all four ways of reading an envelope agree."""
    packet = wire.pack_packet(kind, ident, header, body, **fields)
    assert packet == wire.pack_tensors(kind, ident, header, body, **fields)
    assert packet == wire.pack_packet(kind, ident, header, bytearray(body), **fields)
    assert packet == wire.pack_packet(kind, ident, header, memoryview(body), **fields)
    envelope = wire.read_envelope(packet)
    assert tuple(envelope) == wire.read_fields(packet) == wire.read_fields(bytearray(packet))
    assert Envelope._make(wire.read_fields(packet)) == envelope
    assert wire.read_route(packet) == (kind, ident)


@SHAPES(part="twin", outcome="ok")
@settings(deadline=None)
@given(st.lists(_refs(), max_size=MAX_TENSORS), _REGIONS)
def test_a_request_comes_back(refs: list[TensorRef], regions: list[Region]) -> None:
    """Tensors and regions of a request, and the tensors of a response, are read as they were written."""
    header = _header(refs, regions)
    assert wire.decode_request(header, len(refs), len(regions)) == (tuple(refs), tuple(regions))
    assert wire.decode_response(_header(refs), len(refs)) == tuple(refs)


@settings(deadline=None)
@given(st.lists(_refs(), max_size=4), _REGIONS, st.binary(max_size=50), _FIELDS, st.data())
def test_equal_headers_mean_equal_things(
    refs: list[TensorRef], regions: list[Region], body: bytes, fields: dict[str, int], data: Any
) -> None:
    """What both ends remember by a header's bytes holds for every packet with that header, whatever else is in it."""
    fields |= {"tensors": len(refs), "regions": len(regions)}
    packets = [
        wire.pack_packet(Kind.REQUEST, data.draw(_U64), _header(refs, regions), body, **fields),
        wire.pack_packet(Kind.REQUEST, data.draw(_U64), _header(refs, regions), **(fields | {"deadline_ns": 5})),
    ]
    meant = []
    for packet in packets:
        envelope = wire.read_envelope(packet)
        header = wire.header_of(packet, envelope)
        meant.append((header, wire.decode_request(header, envelope.tensors, envelope.regions)))
    assert meant[0] == meant[1]
    # And there is one reading of it: with another number of tensors the same bytes are none or mean other regions.
    for count in range(MAX_TENSORS + 1):
        try:
            other = wire.decode_request(meant[0][0], count, len(regions))
        except BedsitError:
            continue
        assert (count, other) == (len(refs), meant[0][1])


@settings(deadline=None)
@given(st.sampled_from(Kind), _U64, _U32, _U16, st.binary(max_size=50), st.binary(max_size=50), _FIELDS)
def test_readdressing_changes_the_route_and_nothing_behind_it(
    kind: Kind, ident: int, arena: int, left: int, header: bytes, body: bytes, fields: dict[str, int]
) -> None:
    """What the router does to a packet is new: kind, id, arena and what is left; all other bytes stay as they are."""
    packet = wire.pack_packet(Kind.REQUEST, 7, header, body, **fields)
    before = wire.read_envelope(packet)
    changed = wire.readdress(packet, kind, ident, arena, left)
    assert wire.read_envelope(changed) == before._replace(kind=kind, id=ident, arena=arena, left=left)
    assert changed[ROUTE_BYTES:] == packet[ROUTE_BYTES:]
    assert wire.readdress(packet, Kind.REQUEST, 7, fields["arena"]) == packet


def _read_all(packet: bytes) -> None:
    """Read the packet in every way there is; raises nothing but ``wire.malformed``."""
    kind, ident = wire.read_route(packet)
    envelope = wire.read_envelope(packet)
    assert (envelope.kind, envelope.id) == (kind, ident)
    assert envelope.header_bytes <= len(packet) - ENVELOPE_BYTES
    assert len(wire.body_of(packet, envelope)) <= len(packet)
    header = wire.header_of(packet, envelope)
    assert len(header) == envelope.header_bytes
    readers = (
        lambda: _check(*wire.decode_request(header, envelope.tensors, envelope.regions)),
        lambda: _check(wire.decode_response(header, envelope.tensors), ()),
        lambda: wire.read_map(packet, envelope),
        lambda: wire.decode_error(packet, envelope),
    )
    for read in readers:
        try:
            read()
        except BedsitError as e:
            assert e.code == "wire.malformed"


def _check(refs: tuple[TensorRef, ...], regions: tuple[Region, ...]) -> None:
    """Whatever is accepted keeps all of the promises."""
    assert len(refs) <= MAX_TENSORS
    assert len(regions) <= MAX_TENSORS
    for ref in refs:
        assert ref.dtype in DTYPES
        assert len(ref.shape) <= MAX_DIMS
        assert all(type(dim) is int and 0 <= dim <= MAX_DIM for dim in ref.shape)
        assert ref.nbytes == wire.count_bytes(ref.dtype, ref.shape) <= MAX_DIM
        assert ITEM_BYTES[ref.dtype] * prod(dim or 1 for dim in ref.shape) <= MAX_DIM
        assert ref.place in (Place.INLINE, Place.ARENA)
        assert 0 <= ref.offset <= MAX_DIM
    for region in regions:
        assert 0 <= region.offset <= MAX_DIM
        assert 0 <= region.capacity <= MAX_DIM


@settings(deadline=None)
@given(st.binary(max_size=300), _U8, _U8)
def test_arbitrary_bytes_raise_nothing_but_our_error(data: bytes, tensors: int, regions: int) -> None:
    """Bytes from a peer, whole or behind a good envelope, are a packet or ``wire.malformed``."""
    good = wire.pack_packet(Kind.RESPONSE, 1, data, tensors=tensors, regions=regions)
    shorter = bytearray(good)
    shorter[20:24] = struct.pack("<I", len(data) // 2)
    for packet in (data, data + bytes(ENVELOPE_BYTES), good, good[:-1], bytes(shorter)):
        try:
            _read_all(packet)
        except BedsitError as e:
            assert e.code == "wire.malformed"


@settings(deadline=None, max_examples=300)
@given(st.lists(_refs(), max_size=3), st.lists(st.tuples(st.integers(0, 200), _U8), min_size=1, max_size=6))
def test_a_damaged_packet_raises_nothing_but_our_error(refs: list[TensorRef], changes: list[tuple[int, int]]) -> None:
    """A good request with bytes changed anywhere is another good request or ``wire.malformed``."""
    regions = [Region(4096 * index, 4096) for index, _ in enumerate(refs)]
    packet = bytearray(
        wire.pack_packet(Kind.REQUEST, 1, _header(refs, regions), b"body", tensors=len(refs), regions=len(refs))
    )
    for at, value in changes:
        packet[at % len(packet)] = value
    try:
        _read_all(bytes(packet))
    except BedsitError as e:
        assert e.code == "wire.malformed"


_ANY_ROW = st.builds(
    _row,
    st.integers(0, len(DTYPES)) | _U8,
    st.lists(st.integers(0, 5) | st.integers(0, 2**41) | _U64, max_size=MAX_DIMS).map(tuple),
    st.integers(0, 2) | _U8,
    st.integers(0, 2**41) | _U64,
    st.none() | _U8,
)


@settings(deadline=None, max_examples=300)
@given(st.lists(_ANY_ROW, max_size=4), st.lists(st.tuples(_U64, _U64 | _OFFSETS), max_size=4), st.integers(-1, 1))
def test_arbitrary_rows_raise_nothing_but_our_error(rows: list[bytes], regions: list[Any], surplus: int) -> None:
    """Headers of the right form with any numbers in them: every tensor that is accepted keeps all of the promises."""
    header = b"".join([*rows, *(struct.pack("<QQ", *region) for region in regions)])
    for tensors, rooms in ((len(rows) + surplus, len(regions)), (len(rows), len(regions) + surplus)):
        try:
            refs, got = wire.decode_request(header, max(0, tensors), max(0, rooms))
        except BedsitError as e:
            assert e.code == "wire.malformed"
        else:
            _check(refs, got)
            assert wire.decode_request(_header(refs, got), len(refs), len(got)) == (refs, got)


@SHAPES(part="attack", outcome="wire.malformed")
@pytest.mark.parametrize(
    "row",
    [
        _row(shape=(MAX_DIM + 1,)),
        _row(shape=(MAX_DIM,)),
        _row(shape=(1 << 20, 1 << 20)),
        _row(shape=(1 << 32, 1 << 32)),
        _row(shape=(2**64 - 1,)),
        _row(shape=(2**63, 2)),
        _row(shape=(0, MAX_DIM, MAX_DIM)),
        _row(shape=(MAX_DIM, MAX_DIM, 0)),
        _row(shape=(1,) * (MAX_DIMS + 1)),
        _row(shape=(1,) * 255),
        _row(shape=(1,), dims=2),
        _row(shape=(1,), dims=255),
        _row(shape=(1, 1), dims=1),
        _row(dtype=len(DTYPES)),
        _row(dtype=255),
        _row(place=2),
        _row(place=255),
        _row(offset=MAX_DIM + 1),
        _row(place=1, offset=2**64 - 1),
        _row()[:-1],
        _row()[:15],
        _row()[:1],
        b"",
        _row() + b"\0",
        _row() + _row(),
    ],
    ids=range(25),
)
def test_a_lying_tensor_is_refused(row: bytes) -> None:
    """Huge and overflowing numbers, foreign dtypes and places, rows that are cut off, too long or too many."""
    assert _refusal(wire.decode_request, row, 1, 0) == "wire.malformed"
    assert _refusal(wire.decode_response, row, 1) == "wire.malformed"


def test_the_largest_tensor_is_taken() -> None:
    """The limit of a tensor's bytes is exact, and so is that of its dimensions."""
    ((ref,), _) = wire.decode_request(_row(dtype=1, shape=(MAX_DIM,)), 1, 0)
    assert ref.nbytes == MAX_DIM
    ((ref,), _) = wire.decode_request(_row(shape=(MAX_DIM // 4, 0), place=1, offset=MAX_DIM), 1, 0)
    assert (ref.nbytes, ref.offset) == (0, MAX_DIM)
    ((ref,), _) = wire.decode_request(_row(shape=(1,) * MAX_DIMS), 1, 0)
    assert len(ref.shape) == MAX_DIMS


def test_counts_of_tensors_and_regions_are_limited() -> None:
    """As many as a manifest may declare, and no more, however long the header is."""
    rows, rooms = _row(shape=()) * (MAX_TENSORS + 1), wire.encode_region(0, 0) * (MAX_TENSORS + 1)
    refs, regions = wire.decode_request(rows[:-16] + rooms[:-16], MAX_TENSORS, MAX_TENSORS)
    assert len(refs) == len(regions) == MAX_TENSORS
    assert _refusal(wire.decode_request, rows, MAX_TENSORS + 1, 0) == "wire.malformed"
    assert _refusal(wire.decode_request, rooms, 0, MAX_TENSORS + 1) == "wire.malformed"
    assert _refusal(wire.decode_response, _row(shape=()) * 255, 255) == "wire.malformed"


@pytest.mark.parametrize("region", [(MAX_DIM + 1, 0), (0, MAX_DIM + 1), (2**64 - 1, 2**64 - 1)])
def test_a_lying_region_is_refused(region: tuple[int, int]) -> None:
    """Regions are held to the same ranges, and to their number."""
    packed = struct.pack("<QQ", *region)
    assert _refusal(wire.decode_request, packed, 0, 1) == "wire.malformed"
    for wrong in (b"", bytes(15), bytes(17), bytes(32)):
        assert _refusal(wire.decode_request, wrong, 0, 1) == "wire.malformed"
    assert wire.decode_request(struct.pack("<QQ", MAX_DIM, MAX_DIM), 0, 1)[1] == (Region(MAX_DIM, MAX_DIM),)


def test_a_packet_over_the_limit_is_neither_made_nor_read() -> None:
    """Both ends hold the limit of a packet, in every way of reading it."""
    room = MAX_PACKET - ENVELOPE_BYTES
    longest = wire.pack_packet(Kind.REQUEST, 1, bytes(room))
    assert len(longest) == MAX_PACKET
    assert wire.read_envelope(longest).header_bytes == room
    for header, body in ((bytes(room + 1), b""), (b"", bytes(room)), (b"", bytes(MAX_PACKET))):
        assert _refusal(wire.pack_packet, Kind.REQUEST, 1, header, body) == "wire.malformed"
    for read in (wire.read_fields, wire.read_envelope, wire.read_route):
        assert _refusal(read, longest + b"\0") == "wire.malformed"
        assert _refusal(read, longest[: ENVELOPE_BYTES - 1]) == "wire.malformed"
        assert _refusal(read, b"") == "wire.malformed"


def test_whatever_a_call_needs_fits_into_a_packet() -> None:
    """As many tensors, dimensions and regions as there may be, and all the bytes that travel inline."""
    ref = TensorRef("complex128", (1,) * MAX_DIMS, Place.INLINE, MAX_DIM, 16)
    header = _header([ref] * MAX_TENSORS, [Region(MAX_DIM, MAX_DIM)] * MAX_TENSORS)
    assert len(wire.pack_tensors(Kind.REQUEST, 1, header, bytes(INLINE_BYTES + 64), MAX_TENSORS)) <= MAX_PACKET


@pytest.mark.parametrize(
    ("at", "value"), [(0, b"\0"), (1, b"\0"), (2, b"\1"), (2, b"\3"), (20, struct.pack("<I", 2**32 - 1))]
)
def test_a_foreign_envelope_is_refused(at: int, value: bytes) -> None:
    """Another magic, an older or newer version, and a header that is longer than its packet."""
    packet = bytearray(wire.pack_packet(Kind.RESPONSE, 1, b"header"))
    packet[at : at + len(value)] = value
    assert _refusal(wire.read_envelope, packet) == "wire.malformed"
    if at < ROUTE_BYTES:
        assert _refusal(wire.read_route, packet) == "wire.malformed"


@MSGPACK(part="twin", outcome="ok")
@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8), st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
    ),
    _U64,
)
def test_a_map_comes_back(fields: dict[str, Any], ident: int) -> None:
    """Questions to the router and its answers are maps, and are read as they were written."""
    packet = wire.pack_map(Kind.ASK, ident, fields)
    envelope = wire.read_envelope(packet)
    assert (envelope.kind, envelope.id, envelope.tensors, envelope.regions) == (Kind.ASK, ident, 0, 0)
    assert wire.read_map(packet, envelope) == fields


@MSGPACK(part="attack", outcome="wire.malformed")
@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        msgpack.packb([0] * 65),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000 + b"\x01",
        (b"\xdd" + struct.pack(">I", 60_000)) * 1000 + bytes(50_000),
        msgpack.packb(msgpack.ExtType(1, b"x")),
    ],
    ids=range(8),
)
def test_a_bomb_in_a_map_is_refused(header: bytes) -> None:
    """No list is longer than a few, nothing nests without end, nothing is left over: each ``wire.malformed``."""
    packet = wire.pack_packet(Kind.ASK, 1, header)
    assert _refusal(wire.read_map, packet, wire.read_envelope(packet)) == "wire.malformed"
    packet = wire.pack_packet(Kind.ERROR, 1, header)
    assert _refusal(wire.decode_error, packet, wire.read_envelope(packet)) == "wire.malformed"


def test_a_map_that_is_too_long_is_not_made() -> None:
    """A question or an error of more than a packet is refused where it is written."""
    assert _refusal(wire.pack_map, Kind.ASK, 1, {"op": "x" * MAX_PACKET}) == "wire.malformed"
    assert _refusal(wire.pack_error, 1, error("model.failed", "x" * MAX_PACKET)) == "wire.malformed"


def test_an_error_travels_in_a_packet() -> None:
    """Id, code and detail of an error arrive; the longest detail of ours does."""
    packet = wire.pack_error(4, error("output.too_small", "no", needed=[2**63] * MAX_TENSORS))
    envelope = wire.read_envelope(packet)
    got = wire.decode_error(packet, envelope)
    assert (envelope.kind, envelope.id) == (Kind.ERROR, 4)
    assert (got.code, got.message, got.detail) == ("output.too_small", "no", {"needed": [2**63] * MAX_TENSORS})


@settings(deadline=None)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 100), max_size=MAX_DIMS))
def test_bytes_are_counted(dtype: str, shape: list[int]) -> None:
    """A tensor takes the bytes of one element times all of its dimensions, and a scalar those of one."""
    assert wire.count_bytes(dtype, shape) == ITEM_BYTES[dtype] * prod(shape)
    assert wire.count_bytes(dtype, []) == ITEM_BYTES[dtype]
