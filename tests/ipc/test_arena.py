"""The client's arena: what is given out twice at the same time is a security hole, what is never given back a leak."""

import gc
import os
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bedsit.ipc.arena import PAGE, Arena, Span
from bedsit.ipc.errors import BedsitError

_PAGES = 16


def make_arena(pages: int = _PAGES) -> Arena:
    """An arena over a memfd of its own."""
    fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, pages * PAGE)
    return Arena(fd, pages * PAGE, 1)


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


def test_every_kind_of_view_keeps_the_memory() -> None:
    """Slices, reshapes, casts, buffers and tensors over an array hold its bytes until the last one is gone."""
    import torch

    arena = make_arena()
    for derive in (
        lambda a: a[5:7],
        lambda a: a.reshape(2, -1).T[1],
        lambda a: a.view("uint8"),
        memoryview,
        lambda a: np.frombuffer(a, "uint8"),
        torch.from_numpy,
        lambda a: torch.from_numpy(a)[3:4].view(1, 1),
        lambda a: np.broadcast_to(a, (3, 100)),
    ):
        array = arena.empty(100, "float32")
        view = derive(array)
        del array
        gc.collect()
        assert arena.free_bytes() == (_PAGES - 1) * PAGE
        del view
        gc.collect()
        assert arena.free_bytes() == _PAGES * PAGE


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


@pytest.mark.parametrize("dtype", ["complex64", "object", "U4", "no such dtype", "datetime64[s]", ">f4x"])
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


def test_only_its_own_arrays_are_found_in_an_arena() -> None:
    """An array of another arena, of the heap, or over foreign memory at the same address range is not one of it."""
    arena, other = make_arena(), make_arena()
    array = arena.empty(PAGE, "uint8")
    found = arena.find(array[100:])
    assert found is not None
    assert found[1] == found[0].offset + 100
    assert arena.find(other.empty(4, "uint8")) is None
    assert arena.find(np.zeros(4)) is None
    # Reached through a buffer the span is hidden: it would not be held by the request, so it is copied.
    assert arena.find(np.frombuffer(memoryview(array), "uint8")) is None


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


class ArenaModel(RuleBasedStateMachine):
    """An arena against a model: a list of pages, each owned by one living span or by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = make_arena()
        self.owners: list[int | None] = [None] * _PAGES
        self.spans: dict[int, Span] = {}
        self.count = 0

    def _longest_hole(self) -> int:
        longest = run = 0
        for owner in self.owners:
            run = run + 1 if owner is None else 0
            longest = max(longest, run)
        return longest

    @rule(nbytes=st.integers(0, 6 * PAGE))
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
        first = span.offset // PAGE
        assert span.offset % PAGE == 0
        assert span.capacity == pages * PAGE
        assert self.owners[first : first + pages] == [None] * pages
        self.count += 1
        self.spans[self.count] = span
        self.owners[first : first + pages] = [self.count] * pages

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Dropping a span gives its pages back."""
        if self.spans:
            ident = data.draw(st.sampled_from(sorted(self.spans)))
            del self.spans[ident]
            self.owners = [None if owner == ident else owner for owner in self.owners]

    @invariant()
    def counts_agree(self) -> None:
        """What the arena calls free is what the model calls free, in holes that never touch."""
        assert self.arena.free_bytes() == self.owners.count(None) * PAGE
        holes = self.arena._holes
        assert holes == sorted(holes)
        assert all(a[0] + a[1] < b[0] for a, b in pairwise(holes))


TestArenaModel = ArenaModel.TestCase
TestArenaModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
