"""Weights straight from the artifact: safetensors parts of a bundle are mapped, not unpacked.

The mapping is private: pages nobody writes are shared by every worker with the same artifact through the page cache; a
model that writes to its weights gets its own copy of that page, and no other ever sees it.
"""

import json
import mmap
import os
from math import prod
from typing import Any, Final

import torch

from bedsit.ipc.errors import error
from bedsit.ipc.manifest import MAX_DIM

_MAX_HEADER: Final = 100 << 20
_LENGTH_BYTES: Final = 8
_MAX_DIMS: Final = 64
_DTYPES: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def map_safetensors(fd: int, offset: int, size: int, name: str) -> dict[str, torch.Tensor]:
    """The tensors of the safetensors file that lies at *offset* in *fd*, without a copy.

    Raises ``bundle.invalid`` when the header is broken: too long, not JSON, or a tensor out of bounds.
    """
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    if offset + size > os.fstat(fd).st_size:
        raise _broken(name, "the artifact ends before it")
    if size < _LENGTH_BYTES:
        raise _broken(name, "it is too short to have a header")
    # SAFETY: the artifact is an immutable file of the daemon's, so it cannot shrink under the mapping.
    memory = mmap.mmap(fd, offset + size - start, access=mmap.ACCESS_COPY, offset=start)
    base = offset - start
    header_bytes = int.from_bytes(memory[base : base + _LENGTH_BYTES], "little")
    if header_bytes > min(size - _LENGTH_BYTES, _MAX_HEADER):
        raise _broken(name, f"its header claims {header_bytes} bytes")
    data = base + _LENGTH_BYTES + header_bytes
    try:
        header = json.loads(memory[base + _LENGTH_BYTES : data])
    except (ValueError, RecursionError) as e:
        raise _broken(name, f"its header is not JSON ({type(e).__name__})") from None
    if not isinstance(header, dict):
        raise _broken(name, "its header is not a table")
    room = size - _LENGTH_BYTES - header_bytes
    return {key: _tensor(memory, data, room, row, name) for key, row in header.items() if key != "__metadata__"}


def _tensor(memory: mmap.mmap, data: int, room: int, row: Any, name: str) -> torch.Tensor:
    match row:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            code in _DTYPES and len(shape) <= _MAX_DIMS and all(type(d) is int and 0 <= d <= MAX_DIM for d in shape)
        ):
            dtype = _DTYPES[code]
        case _:
            raise _broken(name, "a tensor's row is not dtype, shape and data_offsets")
    count = prod(shape)
    if not 0 <= begin <= end <= room or end - begin != count * dtype.itemsize:
        raise _broken(name, "a tensor's offsets do not fit its shape or the file")
    if count == 0:
        if prod(dim or 1 for dim in shape) > MAX_DIM:
            raise _broken(name, "a tensor has an absurd shape")
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(memory, dtype=dtype, count=count, offset=data + begin).view(shape)
    # Vector code may assume that elements are aligned; a file that is packed otherwise costs a copy.
    return tensor.clone() if tensor.data_ptr() % dtype.itemsize else tensor


def _broken(name: str, why: str) -> Exception:
    return error("bundle.invalid", f"{name} is not a safetensors file: {why}", "write it again with safetensors")
