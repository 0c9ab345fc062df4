"""Tensors out of packets and arenas and back: inside of their memory, or refused."""

import mmap
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.manifest import DTYPES, ITEM_BYTES, TensorSpec
from bedsit.ipc.wire import INLINE_BYTES, Place, Region, TensorRef
from bedsit.sandbox.worker.tensors import TORCH_DTYPES, read_inputs, write_outputs

SPEC = TensorSpec("x", "float32", (-1,))
PAGE = 4096


def make_arena(pages: int = 4) -> mmap.mmap:
    """Memory like an arena's."""
    return mmap.mmap(-1, pages * PAGE)


def ref(offset: int, elements: int, place: int = Place.ARENA, dtype: str = "float32") -> TensorRef:
    """A reference to *elements* of the input x."""
    return TensorRef("x", dtype, (elements,), place, offset, elements * ITEM_BYTES[dtype])


def code_of(specs: Any, refs: Any, body: bytes = b"", arena: Any = None) -> str:
    """The code with which inputs are refused; empty when they are taken."""
    try:
        read_inputs(specs, refs, memoryview(bytearray(body)), arena)
    except BedsitError as e:
        return e.code
    return ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_every_dtype_and_shape_goes_in_and_out(dtype: str, shape: tuple[int, ...]) -> None:
    """Through the packet and through the arena, a tensor comes back with its bits."""
    value = torch.randint(0, 2, shape).to(TORCH_DTYPES[dtype])
    spec = TensorSpec("x", dtype, tuple(-1 for _ in shape))
    refs, body = write_outputs([spec], [value], [], None)
    (back,) = read_inputs([spec], refs, memoryview(bytearray(body)), None)
    assert back.dtype == value.dtype
    assert back.equal(value)
    arena = make_arena()
    refs, body = write_outputs([spec], [value], [Region("x", PAGE, PAGE)], arena)
    assert body == b""
    (back,) = read_inputs([spec], refs, memoryview(b""), arena)
    assert back.shape == value.shape
    assert back.equal(value)


def test_inputs_are_views_of_their_memory() -> None:
    """No copy is made: what changes in the arena changes in the tensor."""
    arena = make_arena()
    (x,) = read_inputs([SPEC], [ref(64, 4)], memoryview(b""), arena)
    arena[64:68] = b"\x00\x00\x80\x3f"
    assert x[0] == 1.0


def test_inputs_outside_of_their_memory_are_refused() -> None:
    """Ends beyond the arena or the packet, offsets that are not aligned, an arena that is not there."""
    arena = make_arena()
    assert code_of([SPEC], [ref(4 * PAGE - 16, 4)], arena=arena) == ""
    for bad in (ref(4 * PAGE - 12, 4), ref(4 * PAGE, 1), ref(1 << 40, 1), ref(0, 4 * PAGE), ref(2, 4)):
        assert code_of([SPEC], [bad], arena=arena) == "input.invalid"
    assert code_of([SPEC], [ref(0, 1)]) == "input.invalid"
    assert code_of([SPEC], [ref(48, 4, Place.INLINE)], bytes(64)) == ""
    for bad in (ref(52, 4, Place.INLINE), ref(64, 1, Place.INLINE), ref(0, 17, Place.INLINE)):
        assert code_of([SPEC], [bad], bytes(64)) == "input.invalid"


def test_inputs_that_are_not_what_the_model_takes_are_refused() -> None:
    """Missing, surplus, twice, of another dtype, rank or name."""
    two = [SPEC, TensorSpec("w", "int64", (2,))]
    good = ref(0, 1, Place.INLINE)
    w = TensorRef("w", "int64", (2,), Place.INLINE, 0, 16)
    assert code_of(two, [w, good], bytes(64)) == ""
    for refs in (
        [],
        [good],
        [good, good],
        [good, w, w],
        [good, w._replace(name="v")],
        [good, w._replace(dtype="int32")],
        [good, w._replace(shape=(3,))],
        [good, w._replace(shape=(2, 1))],
    ):
        assert code_of(two, refs, bytes(64)) == "input.invalid"


@settings(deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 6) | st.just(1 << 40), max_size=4),
    st.integers(0, 1),
    st.integers(0, 5 * PAGE) | st.just(1 << 40),
)
def test_any_reference_is_a_tensor_inside_or_refused(dtype: str, shape: list[int], place: int, offset: int) -> None:
    """For every reference that decoding lets through: a tensor whose bytes are all in bounds, or BedsitError."""
    from bedsit.ipc.wire import decode_tensors

    arena, body = make_arena(), memoryview(bytearray(256))
    try:
        refs = decode_tensors([["x", DTYPES.index(dtype), shape, place, offset]])
        (x,) = read_inputs([TensorSpec("x", dtype, tuple(-1 for _ in shape))], refs, body, arena)
    except BedsitError as e:
        assert e.code in ("wire.malformed", "input.invalid")
    else:
        assert x.nbytes == 0 or offset + x.nbytes <= (len(arena) if place else len(body))
        x.clone()


def test_outputs_stay_inside_of_their_regions() -> None:
    """A value that is larger than its region is refused before a byte is written, with what all outputs need."""
    arena = make_arena()
    specs = [TensorSpec(n, "float32", (-1,)) for n in ("a", "b")]
    values = [torch.ones(4), torch.ones(PAGE // 4 + 1)]
    with pytest.raises(BedsitError) as caught:
        write_outputs(specs, values, [Region("a", 0, PAGE), Region("b", PAGE, PAGE)], arena)
    assert (caught.value.code, caught.value.detail) == ("output.too_small", {"needed": {"a": 16, "b": PAGE + 4}})
    with pytest.raises(BedsitError) as caught:
        write_outputs(specs, values, [Region("a", 0, PAGE)], arena)
    assert caught.value.code == "output.too_small"
    assert arena[:] == bytes(4 * PAGE)


@pytest.mark.parametrize("region", [Region("x", 4 * PAGE - 64, 128), Region("x", 1 << 40, PAGE), Region("x", 32, PAGE)])
def test_regions_outside_of_the_arena_are_refused(region: Region) -> None:
    """A client's region is checked against this worker's own mapping."""
    with pytest.raises(BedsitError) as caught:
        write_outputs([SPEC], [torch.ones(4)], [region], make_arena())
    assert caught.value.code == "input.invalid"


def test_outputs_too_large_for_a_packet_ask_for_room() -> None:
    """Without regions an answer holds at most the inline limit."""
    write_outputs([SPEC], [torch.ones(INLINE_BYTES // 4)], [], None)
    with pytest.raises(BedsitError) as caught:
        write_outputs([SPEC], [torch.ones(INLINE_BYTES // 4 + 1)], [], None)
    assert caught.value.detail == {"needed": {"x": INLINE_BYTES + 4}}


@pytest.mark.parametrize(
    "value",
    [torch.ones(4, dtype=torch.float64), torch.ones(2, 2), torch.tensor(1.0), torch.ones(4, dtype=torch.complex64)],
)
def test_outputs_that_are_not_declared_are_refused(value: torch.Tensor) -> None:
    """Another dtype or rank is ``output.invalid`` and says both what came and what was declared."""
    with pytest.raises(BedsitError) as caught:
        write_outputs([SPEC], [value], [], None)
    assert caught.value.code == "output.invalid"
    assert "x: float32[*]" in caught.value.hint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_views_are_written_in_the_order_of_their_elements(dtype: str) -> None:
    """Transposed, strided, expanded values, and values that need a gradient, inline and by region."""
    kind = TORCH_DTYPES[dtype]
    spec = TensorSpec("x", dtype, (-1, -1))
    for value in (
        torch.arange(6).to(kind).reshape(2, 3).T,
        torch.arange(40).to(kind).reshape(4, 10)[::2, ::3],
        torch.ones(1, dtype=kind).expand(3, 4),
        torch.ones(2, 2, dtype=kind, requires_grad=True),
    ):
        for regions, arena in (([], None), ([Region("x", 0, PAGE)], make_arena())):
            refs, body = write_outputs([spec], [value], regions, arena)
            (back,) = read_inputs([spec], refs, memoryview(bytearray(body)), arena)
            assert back.equal(value)
