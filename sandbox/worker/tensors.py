"""From a packet and an arena to tensors, and back. Every offset is checked against this process's own mapping."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from bedsit.ipc import wire
from bedsit.ipc.errors import error
from bedsit.ipc.manifest import DTYPES, TensorSpec
from bedsit.ipc.wire import ALIGNMENT, INLINE_BYTES, Region, TensorRef, encode_tensor
from bedsit.sandbox.worker.arenas import Mapped

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {name: getattr(torch, name) for name in DTYPES}
NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}
# What numpy has no type for travels through it as the bits that it is made of.
BITS: Final = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
_TORCH_BITS: Final[dict[str, torch.dtype]] = {name: getattr(torch, kind) for name, kind in BITS.items()}
NUMPY: Final = {name: np.dtype(BITS.get(name, name)) for name in DTYPES}
_REMEMBERED: Final = 256


class Place(NamedTuple):
    """Where an input of a request lies: in the arena, or *offset* bytes into its packet."""

    ref: TensorRef
    in_arena: bool
    offset: int
    kind: np.dtype[Any]
    dtype: torch.dtype | None  # where numpy only holds the bits


def find_places(specs: Sequence[TensorSpec], refs: Sequence[TensorRef], body_at: int) -> tuple[Place, ...]:
    """Where the inputs of a request are whose inline bytes begin at *body_at*. Raises ``input.invalid``."""
    if len(refs) != len(specs):
        raise error("input.invalid", f"{len(refs)} inputs were sent, the model takes {', '.join(map(str, specs))}")
    places = []
    for spec, ref in zip(specs, refs, strict=True):
        if not spec.admits(ref.dtype, ref.shape):
            raise error(
                "input.invalid", f"input {spec.name!r} is {ref.dtype}{list(ref.shape)}", f"the model takes {spec}"
            )
        kind = NUMPY[ref.dtype]
        if ref.offset % kind.itemsize:
            raise error("input.invalid", f"input {spec.name!r} is not aligned")
        in_arena = ref.place == wire.Place.ARENA
        offset = ref.offset if in_arena else ref.offset + body_at
        places.append(Place(ref, in_arena, offset, kind, TORCH_DTYPES[ref.dtype] if ref.dtype in BITS else None))
    return tuple(places)


def view(place: Place, packet: bytearray, arena: Mapped | None) -> torch.Tensor:
    """The tensor at a place, over the memory that it lies in. Raises ``input.invalid``."""
    memory = packet if not place.in_arena else arena.pages if arena is not None else None
    if memory is None:  # numpy would make memory of its own, as much as a packet asks for
        raise error("input.invalid", "an input lies in an arena that this worker does not have")
    try:
        # Through numpy, which checks the bounds: half of what torch.frombuffer and a view of it cost.
        tensor = torch.from_numpy(np.ndarray(place.ref.shape, place.kind, memory, place.offset))
    except (TypeError, ValueError):
        if place.ref.nbytes == 0:
            return torch.empty(place.ref.shape, dtype=TORCH_DTYPES[place.ref.dtype])
        raise error("input.invalid", "an input lies outside of its memory") from None
    return tensor if place.dtype is None else tensor.view(place.dtype)


def check_output(spec: TensorSpec, value: torch.Tensor) -> None:
    """Whether a value is what the manifest declares. Raises ``output.invalid``."""
    name = NAMES.get(value.dtype, str(value.dtype))
    if not spec.admits(name, tuple(value.shape)):
        raise error(
            "output.invalid", f"output {spec.name!r} is {name}{list(value.shape)}", f"bedsit.toml declares {spec}"
        )


class Inline:
    """How outputs of one model travel inline: headers by the dtypes and shapes of the values, made once."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        self._headers: dict[tuple[Any, ...], bytes] = {}

    def find_header(self, values: Sequence[torch.Tensor]) -> bytes:
        """Raises ``output.invalid`` for what is not declared, ``output.too_small`` for what is too much."""
        if len(values) == 1:
            key: tuple[Any, ...] = (values[0].dtype, values[0].shape)
        else:
            key = tuple([(value.dtype, value.shape) for value in values])
        header = self._headers.get(key)
        if header is None:
            for spec, value in zip(self._specs, values, strict=True):
                check_output(spec, value)
            sizes = [count_bytes(value) for value in values]
            if sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes) > INLINE_BYTES:
                raise _too_small(sizes)
            header, at = b"", 0
            for spec, value, size in zip(self._specs, values, sizes, strict=True):
                header += encode_tensor(spec.dtype, value.shape, wire.Place.INLINE, at)
                at += size + -size % ALIGNMENT
            if len(self._headers) >= _REMEMBERED:
                self._headers.clear()
            self._headers[key] = header
        return header

    @staticmethod
    def collect(values: Sequence[torch.Tensor]) -> bytes:
        """The bytes of the outputs, each behind the other's padding."""
        if len(values) == 1:
            return _bytes_of(values[0])
        body = b""
        for value in values:
            body += _bytes_of(value)
            body += bytes(-len(body) % ALIGNMENT)
        return body


def write_to_regions(
    specs: Sequence[TensorSpec],
    values: Sequence[torch.Tensor],
    regions: Sequence[Region],
    arena: Mapped,
    places: Sequence[Place],
) -> bytes:
    """Put the outputs where the caller reserved room; gives the header of the answer.

    An output that lies there already, or inside one of the inputs (*places*) in the arena, is not copied. Raises
    ``output.invalid`` for what is not declared, ``output.too_small`` with the bytes that each output needs where the
    room does not do.
    """
    if len(regions) != len(specs):
        raise error("input.invalid", f"{len(regions)} regions were reserved for {len(specs)} outputs")
    sizes = [count_bytes(value) for value in values]
    sources: list[torch.Tensor] = []
    starts: list[int | None] = []
    for spec, value, size, room in zip(specs, values, sizes, regions, strict=True):
        check_output(spec, value)
        if room.offset + room.capacity > len(arena.pages) or room.offset % ALIGNMENT:
            raise error("input.invalid", "a region lies outside of its arena")
        at = value.data_ptr() - arena.address if size else -1
        in_place = 0 <= at < len(arena.pages) and _lies_in_place(value, at, size, room, places)
        starts.append(at if in_place else None)
        if not in_place and size > room.capacity:
            raise _too_small(sizes)
        # What is a view of a region in another order, or of another output's region, is in the way of the copies.
        is_in_the_way = not in_place and any(other.offset <= at < other.offset + other.capacity for other in regions)
        sources.append(value.clone() if is_in_the_way else value)
    header = b""
    for spec, value, size, room, start in zip(specs, sources, sizes, regions, starts, strict=True):
        offset = room.offset if start is None else start
        if start is None and size:
            tensor_at(spec.dtype, tuple(value.shape), offset, arena).copy_(value)
        header += encode_tensor(spec.dtype, value.shape, wire.Place.ARENA, offset)
    return header


def tensor_at(dtype: str, shape: tuple[int, ...], offset: int, arena: Mapped) -> torch.Tensor:
    """A tensor over the arena's memory. Raises ``input.invalid`` when it is not all in there."""
    try:
        tensor = torch.from_numpy(np.ndarray(shape, NUMPY[dtype], arena.pages, offset))
    except (TypeError, ValueError):
        raise error("input.invalid", "a tensor lies outside of its arena") from None
    return tensor.view(TORCH_DTYPES[dtype]) if dtype in BITS else tensor


def count_bytes(value: torch.Tensor) -> int:
    """How many bytes the elements of a tensor take."""
    return value.numel() * value.element_size()


def _lies_in_place(value: torch.Tensor, at: int, size: int, room: Region, places: Sequence[Place]) -> bool:
    """Whether the bytes at *at* are those of the value: not where torch turns them round only when they are read."""
    if not value.is_contiguous() or value.is_conj() or value.is_neg() or at % value.element_size():
        return False
    if at == room.offset and size <= room.capacity:
        return True
    return any(
        place.in_arena and place.offset <= at and at + size <= place.offset + place.ref.nbytes for place in places
    )


def _bytes_of(value: torch.Tensor) -> bytes:
    data: bytes
    try:
        data = value.numpy().tobytes()
    except (RuntimeError, TypeError):  # numpy has no such type, or the value stands for another one
        value = value.detach().resolve_conj().resolve_neg()
        name = NAMES[value.dtype]
        if name in BITS:
            value = value.contiguous().view(_TORCH_BITS[name])
        data = value.numpy().tobytes()
    return data


def _too_small(sizes: Sequence[int]) -> Exception:
    return error("output.too_small", "the outputs need more room than was reserved", needed=list(sizes))
