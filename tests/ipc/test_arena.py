"""The client's arena: what is given out twice at the same time is a security hole, what is never given back a leak."""

import ctypes
import fcntl
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bedsit.ipc.arena import PAGE, Arena, Span
from bedsit.ipc.errors import BedsitError

_PAGES = 16
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_memfd(pages: int) -> int:
    """A memfd sealed as the router seals it."""
    fd = os.memfd_create("test-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, pages * PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def make_arena(pages: int = _PAGES, keep_pages: int | None = None) -> Arena:
    """An arena over a memfd of its own."""
    return Arena(make_memfd(pages), pages * PAGE, 1, None if keep_pages is None else keep_pages * PAGE)


@contextmanager
def watched_arena(pages: int = _PAGES, keep_pages: int | None = None) -> Iterator[tuple[Arena, Callable[[], int]]]:
    """An arena, and how many pages of its memfd there are."""
    fd = make_memfd(pages)
    watch = os.dup(fd)
    try:
        arena = Arena(fd, pages * PAGE, 1, None if keep_pages is None else keep_pages * PAGE)
        yield arena, lambda: os.fstat(watch).st_blocks * 512 // PAGE
    finally:
        os.close(watch)


def fill(span: Span, value: int) -> None:
    """Write every byte of a span."""
    span.view("uint8", (span.capacity,))[...] = value


VIEWS: list[Callable[[Any], Any]] = [
    lambda a: a[5:7],
    lambda a: a[::-3],
    lambda a: a[:0],
    lambda a: a.reshape(2, -1).T[1],
    lambda a: a.view("uint8"),
    memoryview,
    lambda a: memoryview(a).cast("B")[3:],
    lambda a: np.frombuffer(a, "uint8"),
    lambda a: np.asarray(memoryview(a)),
    lambda a: np.broadcast_to(a, (3, 100)),
    torch.from_numpy,
    lambda a: torch.utils.dlpack.from_dlpack(a.__dlpack__()),
    lambda a: torch.from_numpy(a)[3:4].view(1, 1),
    lambda a: torch.from_numpy(a).view(torch.uint8),
    lambda a: torch.from_numpy(a).numpy()[2:],
    lambda a: {"deep": [iter(a)]},
]


def test_the_descriptor_is_taken_over_and_the_mapping_ends_with_its_last_user() -> None:
    """The memfd is closed once mapped; an array keeps the mapping after the arena is dropped, and frees it."""
    arena: Arena | None = make_arena()
    assert arena is not None
    array = arena.empty(10, "int32")
    array[...] = 7
    arena = None
    gc.collect()
    assert array.sum() == 70
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert "test-arena" in maps.read()
    del array
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert "test-arena" not in maps.read()


@pytest.mark.parametrize("derive", VIEWS)
def test_every_kind_of_view_keeps_the_memory(derive: Callable[[Any], Any]) -> None:
    """Slices, reshapes, casts, buffers and tensors over an array hold its bytes until the last one is gone."""
    arena = make_arena()
    array = arena.empty(100, "float32")
    view = derive(array)
    del array
    assert arena.free_bytes() == (_PAGES - 1) * PAGE
    del view
    assert arena.free_bytes() == _PAGES * PAGE


@pytest.mark.parametrize("derive", VIEWS)
def test_a_weak_reference_to_a_span_tells_whether_anybody_holds_a_view_of_it(derive: Callable[[Any], Any]) -> None:
    """It is alive exactly as long as the last thing that was made of an array over it, whoever dropped the span."""
    span = make_arena().reserve(PAGE)
    held = weakref.ref(span)
    array, other = span.view("float32", (100,)), span.view("float32", (100,))
    del span
    view = derive(array)
    del array, other
    assert held() is not None
    del view
    assert held() is None


def test_a_copy_does_not_keep_the_memory() -> None:
    """What was copied out stands on its own."""
    arena = make_arena()
    array = arena.empty(100, "float32")
    array[...] = 3
    copy = array.copy()
    del array
    assert arena.free_bytes() == arena.size
    assert (copy == 3).all()


def test_arrays_never_overlap() -> None:
    """Each array of a full arena keeps what was written to it."""
    arena = make_arena()
    arrays = [arena.empty(PAGE, "uint8") for _ in range(_PAGES)]
    for value, array in enumerate(arrays):
        array[...] = value
    assert all((array == value).all() for value, array in enumerate(arrays))


def test_an_arena_that_is_full_says_so_and_recovers() -> None:
    """``arena.full`` when nothing fits, also when only the holes are too small; dropping an array makes room."""
    arena = make_arena()
    arrays = [arena.empty(PAGE, "uint8") for _ in range(_PAGES)]
    del arrays[::2]
    assert arena.free_bytes() == _PAGES // 2 * PAGE
    with pytest.raises(BedsitError) as caught:
        arena.empty(2 * PAGE, "uint8")
    assert caught.value.code == "arena.full"
    del caught
    arrays.clear()
    whole = arena.empty(_PAGES * PAGE, "uint8")
    for size in (1, 1 << 60):
        with pytest.raises(BedsitError):
            arena.reserve(size)
    del whole
    arena.reserve(1)


@pytest.mark.parametrize("dtype", ["complex256", "object", "U4", "no such dtype", "datetime64[s]", ">f4x"])
def test_a_dtype_that_cannot_travel_is_refused(dtype: str) -> None:
    """Each is ``input.invalid``, and nothing stays reserved."""
    arena = make_arena()
    with pytest.raises(BedsitError) as caught:
        arena.empty(4, dtype)
    assert caught.value.code == "input.invalid"
    assert arena.free_bytes() == arena.size


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (2, 3), 7])
def test_any_shape_has_its_own_page(shape: Any) -> None:
    """Scalars and empty arrays are arrays too, and hold a page like any other."""
    arena = make_arena()
    array = arena.empty(shape, "bfloat16")
    assert array.dtype == "uint16"
    assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert arena.free_bytes() == arena.size - PAGE
    for wrong in (-1, (2, -3)):
        with pytest.raises(BedsitError):
            arena.empty(wrong, "float32")


@pytest.mark.parametrize(
    "derive",
    [
        lambda a: a,
        lambda a: a[100:],
        lambda a: a.view("uint8")[100:108].reshape(2, 4)[1:],
        lambda a: np.frombuffer(memoryview(a), "uint8")[100:],
        lambda a: np.asarray(memoryview(a).toreadonly())[9:],
        lambda a: torch.from_numpy(a).numpy(),
        lambda a: torch.from_numpy(a)[10:20].numpy(),
        lambda a: torch.from_numpy(a).view(torch.int16).reshape(4, -1)[2].numpy(),
        lambda a: np.from_dlpack(torch.from_numpy(a)[30:]),
    ],
)
def test_what_lies_in_an_arena_is_found_whatever_is_between(derive: Callable[[Any], Any]) -> None:
    """Views, buffers and arrays that went through torch are found with their span and their place."""
    arena = make_arena()
    spans = [arena.reserve(2 * PAGE) for _ in range(4)]
    for span in spans:
        array = derive(span.view("float32", (500,)))
        found = arena.find(array)
        assert found is not None
        assert found[0] is span
        assert found[1] == array.__array_interface__["data"][0] - arena.address
        assert span.offset <= found[1] < span.offset + span.capacity


def test_what_does_not_lie_in_an_arena_is_not_found() -> None:
    """Arrays of another arena and of the heap, empty ones, and those that reach beyond their span."""
    arena, other = make_arena(), make_arena()
    kept = [arena.empty(PAGE, "uint8"), arena.empty(PAGE, "uint8")]
    for array in (
        other.empty(4, "uint8"),
        np.zeros(4),
        np.zeros(4)[1:],
        np.frombuffer(b"bytes", "uint8"),
        torch.zeros(4).numpy(),
        kept[0][:0],
        kept[0].reshape(-1, 1)[PAGE:],
        np.ctypeslib.as_array((ctypes.c_ubyte * (PAGE + 1)).from_address(kept[0].ctypes.data)),
    ):
        assert arena.find(array) is None


def test_memory_that_nothing_keeps_is_found_only_while_somebody_else_keeps_it() -> None:
    """An array made from a bare address is never found in a dead span; in a live one it is found with that span."""
    arena = make_arena()
    array = arena.empty(PAGE, "uint8")
    bare = np.ctypeslib.as_array((ctypes.c_ubyte * PAGE).from_address(array.ctypes.data))
    found = arena.find(bare)
    assert found is not None
    held = found[0]
    del array, found
    assert arena.free_bytes() == arena.size - PAGE
    del held
    assert arena.find(bare) is None
    assert arena.free_bytes() == arena.size
    assert arena.find(bare) is None


def test_the_last_freed_span_of_a_size_comes_first() -> None:
    """Its pages are warm: the same place is given out again, with the bytes that were left there."""
    arena = make_arena()
    spans = [arena.reserve(2 * PAGE) for _ in range(2)]
    places = [span.offset for span in spans]
    for span in spans:
        fill(span, span.offset // PAGE + 1)
    del span
    spans.pop(0)
    spans.pop(0)
    for place in reversed(places):
        span = arena.reserve(2 * PAGE)
        spans.append(span)
        assert span.offset == place
        assert (span.view("uint8", (2 * PAGE,)) == place // PAGE + 1).all()


@pytest.mark.parametrize("pages", [1, 7, 16, 17, 31, 33, 100, 129, 1000, 1 << 20])
def test_sizes_that_differ_little_share_their_spans(pages: int) -> None:
    """A span has whole pages, at least what was asked for, and at most an eighth more."""
    arena = make_arena(1 << 21)
    span = arena.reserve(pages * PAGE - 5)
    assert span.capacity % PAGE == 0
    assert pages * PAGE <= span.capacity <= pages * PAGE * 9 / 8
    assert pages > 16 or span.capacity == pages * PAGE


def test_a_span_that_would_fit_only_as_it_was_asked_for_fits() -> None:
    """Rounding never makes an arena too small."""
    arena = make_arena(33)
    assert arena.reserve(33 * PAGE).capacity == 33 * PAGE
    first = arena.reserve(16 * PAGE)
    assert arena.reserve(17 * PAGE).capacity == 17 * PAGE
    del first
    assert arena.free_bytes() == arena.size


def test_a_view_stays_in_its_span() -> None:
    """One that is too long, or begins beyond the end, is refused; one that ends with the span is not."""
    span = make_arena().reserve(PAGE)
    assert span.view("int64", (PAGE // 8,)).nbytes == PAGE
    assert span.view("complex128", (2, 3), PAGE - 96).shape == (2, 3)
    assert span.view("float8_e5m2", (0, 7), PAGE).dtype == "uint8"
    for shape, skip in (
        ((PAGE // 8 + 1,), 0),
        ((1,), PAGE - 7),
        ((0,), PAGE + 1),
        ((1,), -8),
        ((0, 1 << 40, 1 << 40), 0),
    ):
        with pytest.raises(ValueError, match=r"its span|too big"):
            span.view("int64", shape, skip)


def test_dtypes_are_known_by_any_of_their_names() -> None:
    """Names, numpy's dtypes and scalar types, Python's types and torch's dtypes say the same."""
    arena = make_arena()
    for dtype in ("float32", np.float32, np.dtype("float32"), torch.float32):
        assert arena.empty(3, dtype).dtype == "float32"
    assert arena.empty(3, bool).dtype == "bool"
    assert arena.empty(3, torch.bfloat16).dtype == "uint16"
    assert arena.empty(3, torch.float8_e4m3fn).dtype == "uint8"
    assert arena.empty(3, torch.complex128).nbytes == 48


def test_trim_gives_back_what_is_free_and_nothing_else() -> None:
    """Afterwards the memfd has the pages of living spans alone, with their bytes, and what was free reads as zeros."""
    with watched_arena() as (arena, count_pages):
        spans = [arena.reserve(2 * PAGE) for _ in range(_PAGES // 2)]
        for value, span in enumerate(spans, 1):
            fill(span, value)
        del span
        assert count_pages() == _PAGES
        kept = {value: spans[value - 1].view("uint8", (2 * PAGE,)) for value in (2, 3, 7)}
        spans.clear()
        assert count_pages() == _PAGES
        arena.trim()
        assert count_pages() == 6
        assert all((array == value).all() for value, array in kept.items())
        assert not arena.reserve(PAGE).view("uint8", (PAGE,)).any()
        kept.clear()
        arena.trim()
        assert count_pages() == 0


def test_free_memory_is_kept_up_to_the_bound_and_what_was_freed_longest_ago_goes_first() -> None:
    """The next ``reserve`` gives back what is over the bound; the rest is still there, with its bytes."""
    with watched_arena(32, keep_pages=8) as (arena, count_pages):
        spans = [arena.reserve(pages * PAGE) for pages in (2, 3, 4, 1)]
        for value, span in enumerate(spans, 1):
            fill(span, value)
        del span
        for _ in range(4):
            spans.pop(0)
        assert count_pages() == 10
        held = arena.reserve(PAGE)
        assert count_pages() == 8
        assert (held.view("uint8", (PAGE,)) == 4).all()
        assert (arena.reserve(3 * PAGE).view("uint8", (3 * PAGE,)) == 2).all()
        assert (arena.reserve(4 * PAGE).view("uint8", (4 * PAGE,)) == 3).all()
        assert arena.free_bytes() == arena.size - PAGE


def test_memory_over_the_bound_that_is_used_again_at_once_is_not_given_back() -> None:
    """A loop of calls with results larger than what may be kept stays in the same pages."""
    with watched_arena(32, keep_pages=2) as (arena, count_pages):
        span: Span | None = arena.reserve(16 * PAGE)
        assert span is not None
        fill(span, 5)
        for _ in range(3):
            span = None
            span = arena.reserve(16 * PAGE)
            assert (span.view("uint8", (16 * PAGE,)) == 5).all()
        del span
        arena.reserve(PAGE)
        assert count_pages() == 3
        assert (arena.reserve(2 * PAGE).view("uint8", (2 * PAGE,)) == 5).all()


def test_at_the_bound_memory_of_other_sizes_is_used_before_new_pages() -> None:
    """Sizes that never come again do not make an arena grow: what they left is merged and cut anew."""
    with watched_arena(256, keep_pages=32) as (arena, count_pages):
        for pages in range(1, 17):
            fill(arena.reserve(pages * PAGE), pages)
            assert count_pages() <= 32 + 16
        for pages in range(16, 0, -1):
            first, second = arena.reserve(pages * PAGE), arena.reserve(PAGE)
            fill(first, 1)
            fill(second, 2)
            del first, second
            assert count_pages() <= 32 + 17


def test_every_size_in_use_has_a_place_of_its_own() -> None:
    """As long as all of it may be kept, a size gets back what it had, whatever was asked for in between."""
    arena = make_arena(256)
    for _ in range(2):
        for pages in (3, 7, 1, 5):
            fill(arena.reserve(pages * PAGE), pages)
    for pages in (1, 3, 5, 7):
        assert (arena.reserve(pages * PAGE).view("uint8", (pages * PAGE,)) == pages).all()


def test_by_default_a_quarter_may_be_kept() -> None:
    """At most, and never more than the constant says."""
    assert make_arena(16).keep_bytes == 4 * PAGE
    assert make_arena(1 << 20).keep_bytes == 256 << 20


def test_a_process_that_locks_its_memory_keeps_it() -> None:
    """The kernel refuses to take locked pages back; nothing fails because of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with watched_arena() as (arena, count_pages):
        if libc.mlock(ctypes.c_void_p(arena.address), ctypes.c_size_t(arena.size)):
            pytest.skip("not root: mlock is not allowed")
        arena.trim()
        assert count_pages() == _PAGES
        assert arena.reserve(_PAGES * PAGE).offset == 0


def test_a_forked_child_can_neither_reserve_nor_give_back() -> None:
    """It may read what it inherited; dropping that, reserving and trimming in it touches nothing of its parent's."""
    with watched_arena(keep_pages=0) as (arena, count_pages):
        spans = [arena.reserve(4 * PAGE) for _ in range(3)]
        for value, span in enumerate(spans, 1):
            fill(span, value)
        del span
        child = os.fork()
        if child == 0:
            status = 1
            try:
                seen = [int(span.view("uint8", (PAGE,))[7]) for span in spans]
                array = spans[0].view("uint8", (PAGE,))
                spans.clear()
                codes = []
                for call in (lambda: arena.reserve(PAGE), lambda: arena.empty(3, "bool"), arena.trim, arena.free_bytes):
                    try:
                        call()
                    except BedsitError as e:
                        codes.append(e.code)
                if seen == [1, 2, 3] and codes == ["request.invalid"] * 4 and arena.find(array) is None:
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert count_pages() == 12
        assert all((s.view("uint8", (s.capacity,)) == value).all() for value, s in enumerate(spans, 1))
        assert arena.reserve(4 * PAGE).offset == 12 * PAGE


def test_threads_may_reserve_and_drop_at_the_same_time() -> None:
    """Eight threads with finalizers running anywhere: no span is given out twice, none is lost."""
    arena = make_arena(256)
    clashes: list[int] = []

    def work(mark: int) -> None:
        for round_ in range(200):
            array = arena.empty(PAGE * (1 + round_ % 3), "uint8")
            array[...] = mark
            if not (array == mark).all():
                clashes.append(mark)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
    assert arena.free_bytes() == arena.size


def test_threads_may_trim_and_look_meanwhile() -> None:
    """Pages are given back under other threads' noses, and never those that somebody has."""
    arena = make_arena(256, keep_pages=16)
    done = threading.Event()
    clashes: list[int] = []

    def work(mark: int) -> None:
        for round_ in range(100):
            array = arena.empty(PAGE * (1 + (round_ * mark) % 20), "uint8")
            array[...] = mark
            found = arena.find(array[1:])
            if not (array == mark).all() or found is None or found[1] != array.ctypes.data + 1 - arena.address:
                clashes.append(mark)

    def trim() -> None:
        while not done.is_set():
            arena.trim()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    trimmer = threading.Thread(target=trim)
    for thread in (trimmer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    trimmer.join()
    assert not clashes
    assert arena.free_bytes() == arena.size


def test_spans_may_die_while_the_lock_is_held() -> None:
    """The garbage collector frees arrays in the middle of ``reserve``: no deadlock, nothing lost."""
    arena = make_arena(256)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for round_ in range(300):
            cycle: list[Any] = [arena.empty(PAGE * (1 + round_ % 5), "uint8")]
            cycle.append(cycle)
            del cycle
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert arena.free_bytes() == arena.size


def test_a_span_that_dies_at_the_end_of_the_stack_is_not_lost() -> None:
    """Where even a finalizer may fail for want of depth, the memory is free again at the latest after a trim."""
    arena = make_arena()

    def sink(depth: int) -> None:
        held = arena.reserve(PAGE) if depth % 50 == 0 else None
        with suppress(BedsitError):
            sink(depth + 1)
        del held

    with suppress(RecursionError):
        sink(0)
    arena.trim()
    assert arena.free_bytes() == arena.size


def _live_through(arena: Arena, held: list[Span]) -> None:
    """Every path through an arena: new pages, bins, leftovers, giving back, trimming, rebuilding, a full arena."""
    for pages in (3, 2, 5, 2, 1, 6, 4, 30, 2):
        held.extend(arena.reserve(pages * PAGE) for _ in range(2 if pages < 9 else 1))
        del held[::3]
    with suppress(BedsitError):
        arena.reserve(60 * PAGE)
    arena.free_bytes()
    held.clear()
    arena.trim()
    held.extend(arena.reserve(pages * PAGE) for pages in (4, 4, 4, 52))
    del held[1]
    arena.trim()
    del held[1]
    held.append(arena.reserve(8 * PAGE))  # one half is warm and the other cold
    arena.free_bytes()


def _walk(act: Callable[[list[Span]], None]) -> None:
    """Do *act* at each line of the arena's code in turn; nothing is then lost, or given out twice."""
    source = Path(sys.modules[Arena.__module__].__file__ or "").read_text(encoding="utf-8").splitlines()
    count, at, reached = 0, 0, True
    held: list[Span] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != Arena.reserve.__code__.co_filename:
            return None
        # Python looks for signals after calls and in loops: never between the end of a with block and its __exit__.
        if event == "line" and not source[frame.f_lineno - 1].strip().startswith("with "):
            count += 1
            if count == at:
                sys.settrace(None)
                act(held)
        return trace

    before = sys.gettrace()
    while reached:
        count, at = 0, at + 1
        arena = make_arena(64, keep_pages=12)
        sys.settrace(trace)
        try:
            with suppress(KeyboardInterrupt, IndexError):
                _live_through(arena, held)
        finally:
            sys.settrace(before)
        reached = count == at
        held[:] = [span for span in held if span.capacity < 30 * PAGE]
        held.append(arena.reserve(3 * PAGE))
        held.append(arena.reserve(PAGE))
        for value, span in enumerate(held):
            fill(span, value)
        arena.trim()
        assert all((span.view("uint8", (span.capacity,)) == value).all() for value, span in enumerate(held))
        del span
        held.clear()
        arena.trim()
        assert arena.free_bytes() == arena.size
        assert arena.reserve(arena.size).capacity == arena.size
    assert at > 100


def test_an_interrupt_anywhere_neither_loses_memory_nor_gives_it_out_twice() -> None:
    """After Ctrl-C at any line what lives stays apart, and in the end everything is free."""

    def interrupt(_: list[Span]) -> None:
        raise KeyboardInterrupt

    _walk(interrupt)


def test_a_span_may_die_at_any_line() -> None:
    """The same for a span that another thread drops just then."""

    def drop(held: list[Span]) -> None:
        if held:
            del held[0]

    _walk(drop)


class ArenaModel(RuleBasedStateMachine):
    """An arena against a model: a list of pages, each owned by one living span or by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = -1
        self.spans: dict[int, Span] = {}
        self.count = 0

    @initialize(keep_pages=st.integers(0, 48))
    def begin(self, keep_pages: int) -> None:
        """An arena that keeps nothing, something, or everything."""
        fd = make_memfd(48)
        self.watch = os.dup(fd)
        self.keep_pages = keep_pages
        self.arena = Arena(fd, 48 * PAGE, 1, keep_pages * PAGE)
        self.owners: list[int | None] = [None] * 48

    def teardown(self) -> None:
        """In the end everything is free, in one piece, and without a page."""
        if self.watch >= 0:
            self.spans.clear()
            assert self.arena.reserve(self.arena.size).capacity == self.arena.size
            self.arena.trim()
            assert self._count_pages() == 0
            os.close(self.watch)

    def _count_pages(self) -> int:
        return os.fstat(self.watch).st_blocks * 512 // PAGE

    def _longest_hole(self) -> int:
        longest = run = 0
        for owner in self.owners:
            run = run + 1 if owner is None else 0
            longest = max(longest, run)
        return longest

    @rule(nbytes=st.integers(0, 6 * PAGE) | st.integers(16 * PAGE, 40 * PAGE))
    def reserve(self, nbytes: int) -> None:
        """Succeeds exactly when the model has a hole that is long enough, and gives pages that nobody owns."""
        pages = max(1, -(-nbytes // PAGE))
        longest = self._longest_hole()
        try:
            span = self.arena.reserve(nbytes)
        except BedsitError as e:
            assert e.code == "arena.full"
            assert longest < pages
            return
        assert longest >= pages
        first, got = span.offset // PAGE, span.capacity // PAGE
        assert (span.offset % PAGE, span.capacity % PAGE) == (0, 0)
        assert pages <= got <= max(pages, pages * 9 // 8)
        assert self.owners[first : first + got] == [None] * got
        self.count += 1
        fill(span, self.count % 251)
        self.spans[self.count] = span
        self.owners[first : first + got] = [self.count] * got
        assert self._count_pages() <= self.keep_pages + 48 - self.owners.count(None)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Dropping a span gives its pages back."""
        if self.spans:
            ident = data.draw(st.sampled_from(sorted(self.spans)))
            del self.spans[ident]
            self.owners = [None if owner == ident else owner for owner in self.owners]

    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        """A part of a span is found in it, also when it comes from torch."""
        if self.spans:
            span = self.spans[data.draw(st.sampled_from(sorted(self.spans)))]
            start = data.draw(st.integers(0, span.capacity - 1))
            array = span.view("uint8", (span.capacity,))
            if data.draw(st.booleans()):
                array = torch.from_numpy(array).numpy()
            found = self.arena.find(array[start:])
            assert found is not None
            assert found[0] is span
            assert found[1] == span.offset + start

    @rule()
    def trim(self) -> None:
        """Only the pages of living spans remain."""
        self.arena.trim()
        assert self._count_pages() == 48 - self.owners.count(None)

    @invariant()
    def nothing_is_lost_or_overwritten(self) -> None:
        """What the arena calls free is what the model calls free, and every span has what was written to it."""
        assert self.arena.free_bytes() == self.owners.count(None) * PAGE
        assert self.arena.free_bytes() + sum(s.capacity for s in self.spans.values()) == self.arena.size
        for ident, span in self.spans.items():
            assert (span.view("uint8", (span.capacity,)) == ident % 251).all()
        ends = sorted((s.offset, s.offset + s.capacity) for s in self.spans.values())
        assert all(a[1] <= b[0] for a, b in pairwise(ends))


TestArenaModel = ArenaModel.TestCase
TestArenaModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
