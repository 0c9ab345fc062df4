"""A session's arena, as its client sees it: one sealed memfd that the router made, mapped once.

Guarantees: the mapping cannot shrink under anyone (the memfd is sealed), an array made here stays valid for as long as
it lives, and its bytes are given out again only after the last view of it died *and* every request that named it had
its final answer. All bookkeeping is ordinary Python objects in the client; the shared pages hold payload only.

Every byte is in exactly one of four places:

    live   a span that something refers to
    bins   free, touched, still cut as it was: the next span of that size gets it back as it is
    warm   free, touched, merged: what came out of the bins, and is cut anew
    cold   free, without a page: never touched, or given back to the kernel

Bins and warm together are bounded by *keep_bytes*; what is over it is given back by the next ``reserve``.

Why not one memfd per tensor: making, sealing and passing one costs more than the call, and touching fresh pages costs
ten times a copy into warm ones (1.0 against 12 GB/s). Why not give back all that is free: the same figure.
"""

import contextlib
import ctypes
import mmap
import os
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from math import prod
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import ITEM_BYTES

PAGE: Final = 4096
# A caller that drops one result and asks for the next needs no bound: that memory is reused before it is counted. The
# bound is for what comes and goes in numbers: 256 MiB are eight requests under way with 32 MiB each. A quarter of the
# arena, because so much is what a session that does nothing costs the box.
KEEP_BYTES: Final = 256 << 20
# Above, sizes are rounded up by an eighth at most: requests that differ a little get each other's memory back.
_EXACT_BYTES: Final = 16 * PAGE
# mmap.madvise keeps the GIL, for some 0.2 ms per MiB: between two pieces other threads get their turn.
_PUNCHED_AT_ONCE: Final = 16 << 20
# numpy has neither bfloat16 nor float8: their bits travel as unsigned integers.
_BITS: Final = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
NUMPY_DTYPES: Final = {name: np.dtype(_BITS.get(name, name)) for name in ITEM_BYTES}
_BYTE: Final = np.dtype("uint8")

_Range = tuple[int, int]  # offset, bytes


class Span:
    """A reserved part of an arena. It is free again once nobody refers to it any more.

    Every array over it, and whatever was made of such an array without a copy, refers to it; so do requests in flight.
    Hence a weak reference to a span tells whether anybody still holds a view of it.
    """

    __slots__ = ("__weakref__", "_map", "capacity", "offset")

    def __init__(self, map_: mmap.mmap, offset: int, capacity: int) -> None:
        self._map = map_
        self.offset = offset
        self.capacity = capacity

    def view(self, dtype: str, shape: tuple[int, ...], skip: int = 0) -> NDArray[Any]:
        """A writable array in the span, *skip* bytes from its start; no copy. The array and its views keep the span.

        Raises ValueError for one that does not fit, or that numpy cannot have: an empty one with enormous strides.
        """
        if skip < 0:  # SAFETY: numpy 2.4 looks at the end of a buffer only: a negative offset would be another's memory
            raise ValueError("the array begins before its span")
        memory = _Memory(self.capacity, _BYTE, self._map, self.offset)
        memory.span = self
        try:
            return np.ndarray(shape, NUMPY_DTYPES[dtype], memory, skip)
        except TypeError:
            raise ValueError("the array is larger than its span") from None


class _Memory(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """What arrays over a span have as their base: numpy takes nothing for a base that is not a buffer itself.

    numpy shortens a chain of bases only between arrays of one class, so it never skips this one.
    """

    __slots__ = ("span",)
    span: Span


class _Hold(weakref.ref[Span]):
    """Tells when a span died. One object is index entry, finalizer and record of what is free."""

    __slots__ = ("capacity", "offset")
    offset: int
    capacity: int


class Arena:
    """Maps the memfd *fd* (which it takes over and closes) of *size* bytes and reserves spans in it. Thread-safe.

    Up to *keep_bytes* of free memory are kept for reuse; by default KEEP_BYTES, and at most a quarter of the arena.
    Belongs to the process that made it: a forked child may use the arrays that it inherited and nothing else.
    """

    def __init__(self, fd: int, size: int, number: int, keep_bytes: int | None = None) -> None:
        self.number = number
        self.size = size
        self.keep_bytes = min(KEEP_BYTES, size // 4) if keep_bytes is None else keep_bytes
        try:
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._pid = os.getpid()
        self._lock = Lock()
        self._live: dict[int, _Hold] = {}  # by offset; also what died since the last look at _freed
        self._bins: dict[int, deque[int]] = {}  # by size, the offsets of free spans, the last freed one at the right
        self._binned: dict[int, int] = {}  # the same: offset to size, the first freed one first
        self._warm: list[_Range] = []
        self._cold: list[_Range] = [(0, size)]
        self._kept = 0  # the bytes in bins and warm
        self._starts: list[int] | None = None  # where spans start, live or in a bin, in order; None until asked for
        # An interrupt (Ctrl-C) can end any line of ours. Then this stays set, and whoever comes next starts from _live.
        self._torn = False
        # SAFETY: spans die in any thread, at any moment, also while this thread holds the lock. So the finalizer is
        # deque.append itself: atomic, takes no lock, and runs no bytecode that an interrupt could cut short. __del__
        # does, and weakref.finalize as well. Should it fail all the same (at the end of the stack), _rebuild finds it.
        self._freed: deque[_Hold] = deque()
        self._free = self._freed.append

    def reserve(self, nbytes: int) -> Span:
        """A span of at least *nbytes*, page-aligned. Raises ``arena.full``; ``request.invalid`` in a forked child."""
        if os.getpid() != self._pid:
            raise self._refusal()
        at_least = need = -(-nbytes // PAGE) * PAGE if nbytes > 0 else PAGE
        if need > _EXACT_BYTES:
            shift = need.bit_length() - 4
            need = -(-need >> shift) << shift
        with self._lock:
            if self._torn:
                self._rebuild()
            self._torn = True
            if self._freed:
                self._collect()
            bin_ = self._bins.get(need)
            if bin_:
                offset = bin_.pop()  # the last freed one: its pages are most likely in a cache
                del self._binned[offset]
                self._kept -= need
            else:
                offset, need = self._cut(need, at_least)
            # Only now, or a span over the bound would be given back just before it is asked for again.
            if self._kept > self.keep_bytes:
                self._give_back()
            if need:
                span = Span(self._map, offset, need)
                hold = _Hold(span, self._free)
                hold.capacity = need
                hold.offset = offset
                self._live[offset] = hold
            self._torn = False
        if not need:
            raise error(
                "arena.full",
                f"no {at_least} bytes left in this session's arena of {self.size}",
                "drop results that you no longer need, or ask the operator for a larger arena",
            )
        return span

    def empty(self, shape: int | Sequence[int], dtype: Any) -> NDArray[Any]:
        """An uninitialised array in the arena. Raises ``arena.full``, ``input.invalid`` for what cannot travel."""
        try:
            name = dtype if isinstance(dtype, str) and dtype in NUMPY_DTYPES else np.dtype(dtype).name
        except TypeError:
            name = str(dtype).removeprefix("torch.")
        if name not in NUMPY_DTYPES:
            raise error("input.invalid", f"dtype {name} cannot travel", f"one of {', '.join(NUMPY_DTYPES)}")
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        if any(dim < 0 for dim in dims):
            raise error("input.invalid", f"there is no array of shape {list(dims)}")
        return self.reserve(ITEM_BYTES[name] * prod(dims)).view(name, dims)

    def find(self, array: NDArray[Any]) -> tuple[Span, int] | None:
        """The span that holds all bytes of the contiguous *array* and its offset in the arena, or None.

        Whoever keeps the span, or the array, keeps the memory. An empty array is in no arena.
        """
        base: Any = array.base
        while isinstance(base, np.ndarray):
            base = base.base
        if base is None:  # it ends in an array that owns its bytes, or in one that nothing keeps alive
            return None
        # From here on not by the base chain: torch, buffers and DLPack put objects of their own between an array and
        # its memory. An address cannot mislead. Who made an array from an object that keeps the span finds that span;
        # when the span is dead there is no such array. Who made one from a bare number (ctypes) keeps nothing: it
        # finds the span that lives there now, or none, and never was an array over anything else.
        start = _address_of(array) - self.address
        if not 0 <= start < self.size or os.getpid() != self._pid:
            return None
        with self._lock:
            if self._starts is None:
                self._starts = sorted((*self._live, *self._binned))
            before = bisect_right(self._starts, start)
            hold = self._live.get(self._starts[before - 1]) if before else None
        span = hold() if hold is not None else None
        nbytes = array.nbytes
        if span is None or not nbytes or start + nbytes > span.offset + span.capacity:
            return None
        return span, start

    def free_bytes(self) -> int:
        """How many bytes are not reserved. Raises ``request.invalid`` in a forked child."""
        if os.getpid() != self._pid:
            raise self._refusal()
        with self._lock:
            if self._torn:
                self._rebuild()
            self._torn = True
            self._collect()
            self._torn = False
            return self.size - sum(hold.capacity for hold in self._live.values())

    def trim(self) -> None:
        """Give all free memory back to the kernel. Blocks for some 0.2 ms per MiB. ``request.invalid`` in a child."""
        if os.getpid() != self._pid:
            raise self._refusal()
        with self._lock:
            self._rebuild()

    def _refusal(self) -> BedsitError:
        # The books were copied by fork, the memory was not: what this process thinks free the other one has given out.
        return error(
            "request.invalid",
            f"this arena belongs to process {self._pid}, which forked this one",
            "open a client after the fork",
        )

    def _collect(self) -> None:
        """Put what died into the bins."""
        while self._freed:
            hold = self._freed.popleft()
            offset: int = getattr(hold, "offset", -1)
            if self._live.get(offset) is not hold:
                continue  # _rebuild saw it first, or an interrupt came before it had an offset
            del self._live[offset]
            size = hold.capacity
            bin_ = self._bins.get(size)
            if bin_ is None:
                bin_ = self._bins[size] = deque()
            bin_.append(offset)
            self._binned[offset] = size
            self._kept += size

    def _cut(self, need: int, at_least: int) -> _Range:
        """Free memory of *need* bytes, of *at_least* when there is no more, or of none.

        The order spares pages: leftovers; then new pages as long as they may be kept afterwards, so that every size in
        use gets a bin of its own; then the bins of other sizes; new pages in any case; and everything given back.
        """
        self._starts = None
        offset = self._take_warm(need)
        if offset is None and self._kept + need <= self.keep_bytes:
            offset = _take(self._cold, need)
        if offset is None and self._binned:
            self._warm = _merge([*self._warm, *self._binned.items()])
            self._bins.clear()
            self._binned.clear()
            offset = self._take_warm(need)
        if offset is None:
            offset = _take(self._cold, need)
        if offset is None:
            self._rebuild()
            offset = _take(self._cold, need)
        if offset is not None:
            return offset, need
        offset = _take(self._cold, at_least)
        return (0, 0) if offset is None else (offset, at_least)

    def _take_warm(self, need: int) -> int | None:
        offset = _take(self._warm, need)
        if offset is not None:
            self._kept -= need
        return offset

    def _give_back(self) -> None:
        """Keep no more than the bound: leftovers go first, the largest first, then what was freed longest ago.

        Not the largest of all: old small spans that nobody asks for would stay, and the span in use go each time.
        """
        while (excess := self._kept - self.keep_bytes) > 0:
            if self._warm:
                offset, size = largest = max(self._warm, key=lambda part: part[1])
                self._warm.remove(largest)
                less = size - min(size, -(-excess // PAGE) * PAGE)
                if less:
                    self._warm = _merge([*self._warm, (offset, less)])
                offset, size = offset + less, size - less
            else:
                offset = next(iter(self._binned))
                size = self._binned.pop(offset)
                self._bins[size].popleft()
            self._kept -= size
            self._punch(offset, size)
            self._cold = _merge([*self._cold, (offset, size)])

    def _rebuild(self) -> None:
        """Make all cold that no live span covers, whatever the books say."""
        self._torn = True
        self._live = {offset: hold for offset, hold in self._live.items() if hold() is not None}
        self._bins.clear()
        self._binned.clear()
        self._warm, self._cold, self._kept = [], [], 0
        self._starts = None
        end = 0
        for offset in [*sorted(self._live), self.size]:
            if offset > end:
                self._punch(end, offset - end)
                self._cold.append((end, offset - end))
            if offset < self.size:
                end = offset + self._live[offset].capacity
        self._torn = False

    def _punch(self, offset: int, size: int) -> None:
        """Give the pages of a free range back; they read as zeros in every process that maps them."""
        page = mmap.PAGESIZE  # may be larger than PAGE: never the part of a page that a neighbour lives in
        start, end = -(-offset // page) * page, (offset + size) // page * page
        # SAFETY: madvise(2), MADV_REMOVE frees the memfd's own pages, for the other side too. The range is free: no
        # object here refers to it, and requests in flight hold the spans that they named.
        # A process that locks its memory gets EINVAL: then the pages stay, which costs memory and nothing else.
        with contextlib.suppress(OSError):
            for at in range(start, end, _PUNCHED_AT_ONCE):
                self._map.madvise(mmap.MADV_REMOVE, at, min(_PUNCHED_AT_ONCE, end - at))


def _address_of(array: NDArray[Any]) -> int:
    if array.flags.writeable and array.nbytes and array.flags.c_contiguous:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    return int(array.__array_interface__["data"][0])  # four times as slow


def _take(ranges: list[_Range], need: int) -> int | None:
    """Cut *need* bytes off the smallest range that has them; the offset."""
    fitting = [part for part in ranges if part[1] >= need]
    if not fitting:
        return None
    offset, size = best = min(fitting, key=lambda part: part[1])
    place = ranges.index(best)
    ranges[place : place + 1] = [(offset + need, size - need)] if size > need else []
    return offset


def _merge(ranges: Iterable[_Range]) -> list[_Range]:
    """The same bytes by offset, in as few ranges as possible."""
    merged: list[_Range] = []
    for offset, size in sorted(ranges):
        if merged and sum(merged[-1]) == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + size)
        else:
            merged.append((offset, size))
    return merged
