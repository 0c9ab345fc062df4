"""From a packet and an arena to tensors, and back. Every offset is checked against this process's own mapping."""

import mmap
from collections.abc import Sequence
from typing import Final

import torch

from bedsit.ipc.errors import error
from bedsit.ipc.manifest import DTYPES, TensorSpec
from bedsit.ipc.wire import ALIGNMENT, INLINE_BYTES, Place, Region, TensorRef

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {name: getattr(torch, name) for name in DTYPES}
_NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def read_inputs(
    specs: Sequence[TensorSpec], refs: Sequence[TensorRef], body: memoryview, arena: mmap.mmap | None
) -> list[torch.Tensor]:
    """The inputs in the declared order, as views. Raises ``input.invalid``."""
    by_name = {ref.name: ref for ref in refs}
    if len(by_name) != len(refs) or len(refs) != len(specs):
        raise error("input.invalid", f"{len(refs)} inputs were sent, the model takes {', '.join(map(str, specs))}")
    tensors = []
    for spec in specs:
        ref = by_name.get(spec.name)
        if ref is None:
            raise error("input.invalid", f"input {spec.name!r} is missing", f"the model takes {spec}")
        if not spec.admits(ref.dtype, ref.shape):
            raise error(
                "input.invalid", f"input {ref.name!r} is {ref.dtype}{list(ref.shape)}", f"the model takes {spec}"
            )
        tensors.append(_view(ref, body, arena))
    return tensors


def write_outputs(
    specs: Sequence[TensorSpec], values: Sequence[torch.Tensor], regions: Sequence[Region], arena: mmap.mmap | None
) -> tuple[list[TensorRef], bytes]:
    """Put the outputs where the caller reserved room, or inline where it reserved none.

    Raises ``output.invalid`` when a value is not what the manifest declares, ``output.too_small`` with the bytes that
    are needed when the room does not do.
    """
    for spec, value in zip(specs, values, strict=True):
        name = _NAMES.get(value.dtype, str(value.dtype))
        if not spec.admits(name, tuple(value.shape)):
            raise error(
                "output.invalid", f"output {spec.name!r} is {name}{list(value.shape)}", f"bedsit.toml declares {spec}"
            )
    sizes = [value.numel() * value.element_size() for value in values]
    if regions and arena is not None:
        return _write_to_regions(specs, values, sizes, regions, arena), b""
    if sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes) > INLINE_BYTES:
        raise _too_small(specs, sizes)
    refs, body = [], bytearray()
    for spec, value, size in zip(specs, values, sizes, strict=True):
        refs.append(TensorRef(spec.name, spec.dtype, tuple(value.shape), Place.INLINE, len(body), size))
        body += _bytes_of(value)
        body += bytes(-len(body) % ALIGNMENT)
    return refs, bytes(body)


def _view(ref: TensorRef, body: memoryview, arena: mmap.mmap | None) -> torch.Tensor:
    dtype = TORCH_DTYPES[ref.dtype]
    memory: memoryview | mmap.mmap | None = body if ref.place == Place.INLINE else arena
    if memory is None or ref.offset + ref.nbytes > len(memory):
        raise error("input.invalid", f"input {ref.name!r} lies outside of its memory")
    if ref.offset % dtype.itemsize:
        raise error("input.invalid", f"input {ref.name!r} is not aligned")
    if ref.nbytes == 0:
        return torch.empty(ref.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=ref.nbytes // dtype.itemsize, offset=ref.offset).view(ref.shape)


def _write_to_regions(
    specs: Sequence[TensorSpec],
    values: Sequence[torch.Tensor],
    sizes: Sequence[int],
    regions: Sequence[Region],
    arena: mmap.mmap,
) -> list[TensorRef]:
    rooms = {region.name: region for region in regions}
    for spec, size in zip(specs, sizes, strict=True):
        room = rooms.get(spec.name)
        if room is None or size > room.capacity:
            raise _too_small(specs, sizes)
        if room.offset + room.capacity > len(arena) or room.offset % ALIGNMENT:
            raise error("input.invalid", f"the region for {spec.name!r} lies outside of its arena")
    refs = []
    for spec, value, size in zip(specs, values, sizes, strict=True):
        offset = rooms[spec.name].offset
        if size:
            target = torch.frombuffer(arena, dtype=value.dtype, count=value.numel(), offset=offset)
            target.view(value.shape).copy_(value)
        refs.append(TensorRef(spec.name, spec.dtype, tuple(value.shape), Place.ARENA, offset, size))
    return refs


def _bytes_of(value: torch.Tensor) -> bytes:
    if value.dtype is torch.bfloat16:
        value = value.view(torch.uint16)
    data: bytes = value.detach().contiguous().numpy().tobytes()
    return data


def _too_small(specs: Sequence[TensorSpec], sizes: Sequence[int]) -> Exception:
    needed = {spec.name: size for spec, size in zip(specs, sizes, strict=True)}
    return error("output.too_small", "the outputs need more room than was reserved", needed=needed)
