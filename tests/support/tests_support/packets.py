"""Packets by hand: a model, a session without a router, requests taken apart and answers put together."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc import wire
from bedsit.ipc.arena import NUMPY_DTYPES, Arena
from bedsit.ipc.door import ModelInfo
from bedsit.ipc.manifest import parse_manifest
from bedsit.ipc.session import Session, Tensors
from bedsit.ipc.wire import Kind, Region, TensorRef

Row = tuple[str, str, Sequence[int]]  # name, dtype, shape
X: Row = ("x", "float32", (-1,))
Y: Row = ("y", "float32", (-1,))


def make_info(
    inputs: Sequence[Row] = (X,), outputs: Sequence[Row] = (Y,), *, number: int = 3, version: int = 2, **more: Any
) -> ModelInfo:
    """A model as the router describes it; *more* are further keys of its ``bedsit.toml``."""
    table = {"name": "m", "runner": "python", "entry": "m:b", **more}
    for key, rows in (("inputs", inputs), ("outputs", outputs)):
        table[key] = [{"name": name, "dtype": dtype, "shape": list(shape)} for name, dtype, shape in rows]
    return ModelInfo(number, version, parse_manifest(table))


def make_arena(size: int, number: int = 7) -> Arena:
    """An arena that nobody else has."""
    fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return Arena(fd, size, number)


def make_session(size: int = 1 << 20, tensors: Tensors = "numpy") -> Session:
    """A session without a router."""
    return Session(make_arena(size), tensors)


class Sent(NamedTuple):
    """A REQUEST taken apart."""

    envelope: wire.Envelope
    refs: tuple[TensorRef, ...]
    regions: tuple[Region, ...]
    body: bytes


def take_apart(packet: bytes) -> Sent:
    """What a worker reads in a request."""
    envelope = wire.read_envelope(packet)
    assert envelope.kind == Kind.REQUEST
    refs, regions = wire.decode_request(wire.header_of(packet, envelope), envelope.tensors, envelope.regions)
    return Sent(envelope, refs, regions, bytes(wire.body_of(packet, envelope)))


def bytes_at(ref: TensorRef, body: bytes, arena: Arena) -> bytes:
    """The bytes of a tensor in a packet of *arena*'s session."""
    if ref.place == wire.Place.ARENA:
        return bytes(arena._map[ref.offset : ref.offset + ref.nbytes])
    return body[ref.offset : ref.offset + ref.nbytes]


def row_of(ref: TensorRef) -> bytes:
    """A tensor as a row of a header."""
    return wire.encode_tensor(ref.dtype, ref.shape, ref.place, ref.offset)


def inline_ref(shape: Sequence[int], offset: int = 0, dtype: str = "float32") -> TensorRef:
    """A tensor in the packet."""
    return TensorRef(dtype, tuple(shape), wire.Place.INLINE, offset, wire.count_bytes(dtype, shape))


def arena_ref(shape: Sequence[int], offset: int, dtype: str = "float32") -> TensorRef:
    """A tensor in the arena."""
    return TensorRef(dtype, tuple(shape), wire.Place.ARENA, offset, wire.count_bytes(dtype, shape))


def answer(ident: int, *refs: TensorRef, body: bytes = b"") -> bytes:
    """A RESPONSE with these outputs."""
    return wire.pack_packet(Kind.RESPONSE, ident, b"".join(map(row_of, refs)), body, tensors=len(refs))


def some_values(dtype: str, shape: Sequence[int], start: int = 0) -> NDArray[Any]:
    """An array of what travels for *dtype*: small numbers that tell elements apart."""
    count = int(np.prod(shape, dtype=np.int64))
    numbers = np.arange(start, start + count)
    kind = NUMPY_DTYPES[dtype]
    values = numbers % 2 == 1 if dtype == "bool" else (numbers % 100).astype(kind)
    if dtype.startswith("complex"):
        values = values + 1j * (values + 1)
    return np.asarray(values, kind).reshape(tuple(shape))
