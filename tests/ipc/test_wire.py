"""Packets: what goes in comes out, and no bytes from a peer do harm."""

import struct
from math import prod
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.ipc import wire
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import DTYPES, ITEM_BYTES, MAX_DIM, MAX_DIMS, MAX_TENSORS
from bedsit.ipc.wire import ENVELOPE_BYTES, MAX_PACKET, Kind, Place, Region, TensorRef
from tests_support.marks import SHAPES

_U32 = st.integers(0, 2**32 - 1)
_U64 = st.integers(0, 2**64 - 1)
_NAMES = st.text(max_size=12)


@st.composite
def _refs(draw: st.DrawFn) -> TensorRef:
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 30), max_size=MAX_DIMS)))
    offset = draw(st.integers(0, MAX_DIM))
    return TensorRef(draw(_NAMES), dtype, shape, draw(st.sampled_from(Place)), offset, ITEM_BYTES[dtype] * prod(shape))


@given(
    st.sampled_from(Kind),
    _U64,
    st.binary(max_size=100),
    st.binary(max_size=100),
    st.fixed_dictionaries({"model": _U32, "model_version": _U32, "deadline_ns": _U64, "arena": _U32}),
)
def test_a_packet_comes_back(kind: Kind, ident: int, header: bytes, body: bytes, fields: dict[str, int]) -> None:
    """Envelope, header and body are read as they were written; the body starts on a multiple of 64."""
    packet = wire.pack_packet(kind, ident, header, body, **fields)
    envelope = wire.read_envelope(packet)
    assert (envelope.kind, envelope.id, envelope.header_bytes) == (kind, ident, len(header))
    assert {name: getattr(envelope, name) for name in fields} == fields
    assert packet[ENVELOPE_BYTES : ENVELOPE_BYTES + len(header)] == header
    assert bytes(wire.body_of(packet, envelope)) == body
    assert not body or (len(packet) - len(body)) % 64 == 0


@SHAPES(part="twin", outcome="ok")
@given(st.lists(_refs(), max_size=8), st.lists(st.builds(Region, _NAMES, *[st.integers(0, MAX_DIM)] * 2), max_size=8))
def test_a_request_comes_back(refs: list[TensorRef], regions: list[Region]) -> None:
    """Tensors and regions of a request, and the tensors of a response, are read as they were written."""
    packet = wire.pack_packet(Kind.REQUEST, 1, wire.encode_request(refs, regions))
    fits = all(ITEM_BYTES[r.dtype] * prod(d or 1 for d in r.shape) <= MAX_DIM for r in refs)
    if not fits:
        return
    assert wire.decode_request(packet, wire.read_envelope(packet)) == (refs, regions)
    packet = wire.pack_packet(Kind.RESPONSE, 1, wire.encode_response(refs))
    assert wire.decode_response(packet, wire.read_envelope(packet)) == refs


@given(_U64, _U32, _U32, st.binary(max_size=50), st.binary(max_size=50))
def test_readdressing_changes_id_version_and_arena_and_nothing_else(
    ident: int, version: int, arena: int, header: bytes, body: bytes
) -> None:
    """What the router does to a packet leaves kind, deadline, header and body alone."""
    packet = wire.pack_packet(Kind.REQUEST, 7, header, body, model=3, model_version=0, deadline_ns=99, arena=5)
    before = wire.read_envelope(packet)
    changed = wire.readdress(packet, before, ident, model_version=version, arena=arena)
    assert wire.read_envelope(changed) == before._replace(id=ident, model_version=version, arena=arena)
    assert changed[ENVELOPE_BYTES:] == packet[ENVELOPE_BYTES:]


def _read_all(packet: bytes) -> None:
    envelope = wire.read_envelope(packet)
    assert isinstance(wire.decode_error(packet, envelope), BedsitError)
    assert len(wire.body_of(packet, envelope)) <= len(packet)
    for read in (wire.decode_request, wire.decode_response):
        try:
            read(packet, envelope)
        except BedsitError as e:
            assert e.code == "wire.malformed"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_our_error(data: bytes) -> None:
    """Bytes from a peer, whole or behind a good envelope, are a packet or ``wire.malformed``."""
    good = wire.pack_packet(Kind.RESPONSE, 1, data)
    for packet in (data, good, good[:-1], good[:4] + struct.pack("<I", len(data) // 2) + good[8:]):
        try:
            _read_all(packet)
        except BedsitError as e:
            assert e.code == "wire.malformed"


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=20,
)
_ROWS = st.lists(
    st.tuples(
        st.text(max_size=3) | _ANY,
        st.integers(-1, 12) | _ANY,
        st.lists(st.integers(-2, 2**41) | st.booleans(), max_size=10) | _ANY,
        st.integers(-1, 2) | _ANY,
        st.integers(-1, 2**41) | _ANY,
    ).map(list)
    | _ANY,
    max_size=4,
)


@given(_ROWS, _ROWS)
def test_arbitrary_rows_raise_nothing_but_our_error(tensors: Any, regions: Any) -> None:
    """Headers of the right form with anything in them: every tensor that is accepted keeps all of the promises."""
    for header in ([tensors], [tensors, regions], tensors, regions):
        packet = wire.pack_packet(Kind.REQUEST, 1, msgpack.packb(header))
        envelope = wire.read_envelope(packet)
        for read in (wire.decode_request, wire.decode_response):
            try:
                got = read(packet, envelope)
            except BedsitError as e:
                assert e.code == "wire.malformed"
                continue
            refs: list[TensorRef] = got[0] if isinstance(got, tuple) else got  # type: ignore[assignment]
            for ref in refs:
                assert ref.dtype in DTYPES
                assert all(type(dim) is int and 0 <= dim <= MAX_DIM for dim in ref.shape)
                assert ref.nbytes == ITEM_BYTES[ref.dtype] * prod(ref.shape) <= MAX_DIM
                assert ref.place in (0, 1)
                assert 0 <= ref.offset <= MAX_DIM


@SHAPES(part="attack", outcome="wire.malformed")
@pytest.mark.parametrize(
    "row",
    [
        ["x", 8, [-1], 0, 0],
        ["x", 8, [True], 0, 0],
        ["x", 8, [1.0], 0, 0],
        ["x", 8, [None], 0, 0],
        ["x", 8, "1", 0, 0],
        ["x", 8, [MAX_DIM + 1], 0, 0],
        ["x", 8, [MAX_DIM], 0, 0],
        ["x", 8, [1 << 20, 1 << 20], 0, 0],
        ["x", 8, [1 << 32, 1 << 32], 0, 0],
        ["x", 8, [0, MAX_DIM, MAX_DIM], 0, 0],
        ["x", 8, [1] * (MAX_DIMS + 1), 0, 0],
        ["x", -1, [1], 0, 0],
        ["x", len(DTYPES), [1], 0, 0],
        ["x", True, [1], 0, 0],
        ["x", "float32", [1], 0, 0],
        ["x", 8, [1], 2, 0],
        ["x", 8, [1], -1, 0],
        ["x", 8, [1], True, 0],
        ["x", 8, [1], 1, -1],
        ["x", 8, [1], 1, MAX_DIM + 1],
        ["x", 8, [1], 1, True],
        [b"x", 8, [1], 0, 0],
        [7, 8, [1], 0, 0],
        ["x", 8, [1], 0],
        ["x", 8, [1], 0, 0, 0],
        {},
        None,
        "x",
    ],
)
def test_a_lying_tensor_is_refused(row: Any) -> None:
    """Negative, huge, boolean, fractional and overflowing numbers, wrong types and wrong lengths."""
    with pytest.raises(BedsitError) as caught:
        wire.decode_tensors([row])
    assert caught.value.code == "wire.malformed"


def test_counts_of_tensors_and_regions_are_limited() -> None:
    """As many as a manifest may declare, and no more."""
    row = ["x", 0, [], 0, 0]
    assert len(wire.decode_tensors([row] * MAX_TENSORS)) == MAX_TENSORS
    with pytest.raises(BedsitError):
        wire.decode_tensors([row] * (MAX_TENSORS + 1))
    header = msgpack.packb([[], [["r", 0, 0]] * (MAX_TENSORS + 1)])
    packet = wire.pack_packet(Kind.REQUEST, 1, header)
    with pytest.raises(BedsitError):
        wire.decode_request(packet, wire.read_envelope(packet))


@pytest.mark.parametrize(
    "region", [["r", -1, 1], ["r", 0, -1], ["r", True, 0], ["r", 0, MAX_DIM + 1], ["r", 0], [1, 0, 0]]
)
def test_a_lying_region_is_refused(region: Any) -> None:
    """Regions are held to the same ranges."""
    packet = wire.pack_packet(Kind.REQUEST, 1, msgpack.packb([[], [region]]))
    with pytest.raises(BedsitError):
        wire.decode_request(packet, wire.read_envelope(packet))


def test_a_packet_over_the_limit_is_neither_made_nor_read() -> None:
    """Both ends hold the limit of a packet."""
    room = MAX_PACKET - ENVELOPE_BYTES
    assert len(wire.pack_packet(Kind.REQUEST, 1, bytes(room))) == MAX_PACKET
    for header, body in ((bytes(room + 1), b""), (b"", bytes(room))):
        with pytest.raises(BedsitError):
            wire.pack_packet(Kind.REQUEST, 1, header, body)
    with pytest.raises(BedsitError):
        wire.read_envelope(bytes(MAX_PACKET + 1))


def test_an_error_travels_in_a_packet() -> None:
    """Code and detail of an error arrive."""
    packet = wire.pack_packet(Kind.ERROR, 4, wire.encode_error(error("output.too_small", "no", needed={"y": 9})))
    got = wire.decode_error(packet, wire.read_envelope(packet))
    assert (got.code, got.detail) == ("output.too_small", {"needed": {"y": 9}})
