"""A session's arena, as its client sees it: one sealed memfd that the router made, mapped once.

Guarantees: the mapping cannot shrink under anyone (the memfd is sealed), an array made here stays valid for as long as
it lives, and its bytes are given out again only after the last view of it died *and* every request that named it had
its final answer. All bookkeeping is ordinary Python objects in the client; the shared pages hold payload only.

Why not one memfd per tensor: making, sealing and passing one costs more than the call, and touching fresh pages costs
seven times a copy into warm ones (2.2 against 14.9 GB/s).
"""

import ctypes
import mmap
import os
import weakref
from bisect import insort
from collections import deque
from collections.abc import Sequence
from math import prod
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.errors import error
from bedsit.ipc.manifest import ITEM_BYTES

PAGE: Final = 4096
# numpy has no bfloat16: its bits travel as uint16.
NUMPY_DTYPES: Final = {name: np.dtype("uint16" if name == "bfloat16" else name) for name in ITEM_BYTES}


class Span:
    """A reserved part of an arena. It is free again once nobody refers to it any more.

    Arrays over it refer to it as their base, requests in flight refer to it from the session.
    """

    __slots__ = ("__array_interface__", "__weakref__", "arena", "capacity", "offset")

    def __init__(self, arena: "Arena", offset: int, capacity: int) -> None:
        self.arena = arena  # keeps the mapping alive
        self.offset = offset
        self.capacity = capacity

    def view(self, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """A writable array over the start of the span; no copy. The array and its views keep the span alive."""
        kind = NUMPY_DTYPES[dtype]
        if kind.itemsize * prod(shape) > self.capacity:
            raise ValueError("the array is larger than its span")
        self.__array_interface__ = {
            "version": 3,
            "typestr": kind.str,
            "shape": shape,
            "data": (self.arena.address + self.offset, False),
        }
        return np.asarray(self)


class Arena:
    """Maps the memfd *fd* (which it takes over and closes) of *size* bytes and reserves spans in it. Thread-safe."""

    def __init__(self, fd: int, size: int, number: int) -> None:
        self.number = number
        self.size = size
        try:
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._lock = Lock()
        self._holes: list[tuple[int, int]] = [(0, size)]  # (offset, bytes), by offset, never adjacent
        # Finalizers run anywhere, also while the lock is held: they only append.
        self._freed: deque[tuple[int, int]] = deque()

    def reserve(self, nbytes: int) -> Span:
        """A span of at least *nbytes*, page-aligned. Raises ``arena.full``."""
        need = max(PAGE, -(-nbytes // PAGE) * PAGE)
        with self._lock:
            self._collect()
            for index, (offset, free) in enumerate(self._holes):
                if free >= need:
                    if free == need:
                        del self._holes[index]
                    else:
                        self._holes[index] = (offset + need, free - need)
                    break
            else:
                raise error(
                    "arena.full",
                    f"no {need} bytes left in this session's arena of {self.size}",
                    "drop results that you no longer need, or ask the operator for a larger arena",
                )
        span = Span(self, offset, need)
        weakref.finalize(span, self._freed.append, (offset, need)).atexit = False
        return span

    def empty(self, shape: int | Sequence[int], dtype: Any) -> NDArray[Any]:
        """An uninitialised array in the arena. Raises ``arena.full``, ``input.invalid`` for what cannot travel."""
        try:
            name = dtype if isinstance(dtype, str) and dtype in NUMPY_DTYPES else np.dtype(dtype).name
        except TypeError:
            name = str(dtype)
        if name not in NUMPY_DTYPES:
            raise error("input.invalid", f"dtype {name} cannot travel", f"one of {', '.join(NUMPY_DTYPES)}")
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        if any(dim < 0 for dim in dims):
            raise error("input.invalid", f"there is no array of shape {list(dims)}")
        return self.reserve(ITEM_BYTES[name] * prod(dims)).view(name, dims)

    def find(self, array: NDArray[Any]) -> tuple[Span, int] | None:
        """The span that holds all bytes of the contiguous *array* and its offset in the arena, or None."""
        start = array.__array_interface__["data"][0] - self.address
        if not 0 <= start < self.size:
            return None
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, Span) and base.arena is self:
            return base, start
        return None

    def free_bytes(self) -> int:
        """How many bytes are not reserved."""
        with self._lock:
            self._collect()
            return sum(size for _, size in self._holes)

    def _collect(self) -> None:
        while self._freed:
            insort(self._holes, self._freed.popleft())
        merged: list[tuple[int, int]] = []
        for offset, size in self._holes:
            if merged and merged[-1][0] + merged[-1][1] == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((offset, size))
        self._holes = merged
