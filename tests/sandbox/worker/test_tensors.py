"""Tensors out of packets and arenas and back: inside of their memory, or refused."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedsit.ipc import wire
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.manifest import DTYPES, ITEM_BYTES, TensorSpec
from bedsit.ipc.wire import INLINE_BYTES, Region, TensorRef
from bedsit.sandbox.worker.arenas import Mapped
from bedsit.sandbox.worker.tensors import TORCH_DTYPES, Inline, Place, find_places, tensor_at, view, write_to_regions
from tests_support.packets import arena_ref, inline_ref
from tests_support.workers import make_mapped

SPEC = TensorSpec("x", "float32", (-1,))
PAGE = 4096
SIZE = 16 * PAGE
_SHAPES = [(), (0,), (3, 0, 2), (5,), (2, 3, 4), (1, 1)]


def read(specs: Sequence[TensorSpec], refs: Any, body: bytes = b"", arena: Mapped | None = None) -> list[torch.Tensor]:
    """The inputs of a request whose inline bytes are *body*."""
    return [view(place, bytearray(body), arena) for place in find_places(specs, refs, 0)]


def code_of(*what: Any, **more: Any) -> str:
    """The code with which inputs are refused; empty when they are taken."""
    try:
        read(*what, **more)
    except BedsitError as e:
        return e.code
    return ""


def spec_for(dtype: str, shape: Sequence[int]) -> TensorSpec:
    """What a model declares that takes that."""
    return TensorSpec("x", dtype, (-1,) * len(shape))


def values_of(dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """A tensor whose elements differ where the dtype has room for that."""
    count = torch.Size(shape).numel()
    numbers = torch.arange(count) % (2 if dtype == "bool" else 100)
    return numbers.to(TORCH_DTYPES[dtype]).reshape(tuple(shape))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are of one dtype and shape, and equal in every bit of their values."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    plain = [t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1) for t in (a, b)]
    return not a.numel() or plain[0].view(torch.uint8).equal(plain[1].view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", _SHAPES)
def test_every_dtype_and_shape_goes_in_and_out(dtype: str, shape: tuple[int, ...]) -> None:
    """Through the packet and through the arena, a tensor comes back with its bits."""
    value, spec = values_of(dtype, shape), spec_for(dtype, shape)
    inline = Inline([spec])
    (ref,) = wire.decode_response(inline.find_header([value]), 1)
    (back,) = read([spec], [ref], inline.collect([value]))
    assert same(back, value)
    arena = make_mapped()
    (ref,) = wire.decode_response(write_to_regions([spec], [value], [Region(PAGE, PAGE)], arena, ()), 1)
    assert ref == arena_ref(shape, PAGE, dtype)
    (back,) = read([spec], [ref], arena=arena)
    assert same(back, value)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.sampled_from([*_SHAPES, (63,), (64,), (65,)])), min_size=1, max_size=8
    )
)
def test_several_outputs_lie_behind_each_other(outputs: list[tuple[str, tuple[int, ...]]]) -> None:
    """Each begins on a multiple of 64 behind the one before, whatever their sizes: they come back in their order."""
    specs = [spec_for(dtype, shape) for dtype, shape in outputs]
    values = [values_of(dtype, shape) for dtype, shape in outputs]
    inline = Inline(specs)
    for _ in range(2):  # the second time from what is remembered
        refs = wire.decode_response(inline.find_header(values), len(values))
        body = inline.collect(values)
        assert all(ref.offset % 64 == 0 for ref in refs)
        assert all(same(a, b) for a, b in zip(read(specs, refs, body), values, strict=True))


def test_inputs_are_views_of_their_memory() -> None:
    """No copy is made: what changes in the arena, or in the packet, changes in the tensor."""
    arena = make_mapped()
    (x,) = read([SPEC], [arena_ref((4,), 64)], arena=arena)
    arena.pages[64:68] = b"\x00\x00\x80\x3f"
    assert x[0] == 1.0
    assert x.data_ptr() == arena.address + 64
    packet = bytearray(256)
    (place,) = find_places([SPEC], [inline_ref((4,), 64)], 128)
    x = view(place, packet, None)
    packet[192:196] = b"\x00\x00\x80\x3f"
    assert x[0] == 1.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "complex128"])
def test_what_numpy_has_no_type_for_is_a_view_too(dtype: str) -> None:
    """bfloat16 and float8 are read where they lie."""
    arena = make_mapped()
    spec = spec_for(dtype, (2,))
    (x,) = read([spec], [arena_ref((2,), 64, dtype)], arena=arena)
    assert (x.dtype, x.data_ptr()) == (TORCH_DTYPES[dtype], arena.address + 64)


def test_inputs_outside_of_their_memory_are_refused() -> None:
    """Ends beyond the arena or the packet, offsets that are not aligned, an arena that is not there."""
    arena = make_mapped()
    assert code_of([SPEC], [arena_ref((4,), SIZE - 16)], arena=arena) == ""
    for elements, offset in ((4, SIZE - 12), (1, SIZE), (1, 1 << 40), (SIZE, 0), (4, 2), (1 << 38, 0)):
        assert code_of([SPEC], [arena_ref((elements,), offset)], arena=arena) == "input.invalid"
    assert code_of([SPEC], [inline_ref((4,), 48)], bytes(64)) == ""
    for elements, offset in ((4, 52), (1, 64), (17, 0), (1, 1 << 40), (1 << 38, 0), (4, 1)):
        assert code_of([SPEC], [inline_ref((elements,), offset)], bytes(64)) == "input.invalid"


@pytest.mark.parametrize("elements", [0, 1, 1 << 20, 1 << 40])
def test_an_arena_that_is_not_mapped_costs_nothing(elements: int) -> None:
    """However much a packet says lies there, no memory is made for it: ``input.invalid``."""
    spec = TensorSpec("x", "uint8", (-1,))
    assert code_of([spec], [arena_ref((elements,), 0, "uint8")]) == "input.invalid"
    assert code_of([spec], [arena_ref((elements,), 1 << 40, "uint8")]) == "input.invalid"


def test_empty_inputs_may_lie_anywhere() -> None:
    """A tensor without an element has no bytes to be out of bounds."""
    arena = make_mapped()
    for ref in (arena_ref((0,), SIZE), arena_ref((0,), 1 << 40), inline_ref((0,), 1 << 40)):
        (x,) = read([SPEC], [ref], arena=arena)
        assert (x.shape, x.dtype) == ((0,), torch.float32)
    (x,) = read([spec_for("bfloat16", (0, 3))], [inline_ref((0, 3), 0, "bfloat16")])
    assert (x.shape, x.dtype) == ((0, 3), torch.bfloat16)


def test_inputs_that_are_not_what_the_model_takes_are_refused() -> None:
    """Missing, surplus, in another order, of another dtype, rank or fixed dimension."""
    two = [SPEC, TensorSpec("w", "int64", (2,))]
    x, w = inline_ref((1,)), inline_ref((2,), 0, "int64")
    assert code_of(two, [x, w], bytes(64)) == ""
    for refs in (
        [],
        [x],
        [x, x],
        [w, x],
        [x, w, w],
        [x, inline_ref((2,), 0, "int32")],
        [x, inline_ref((2,), 0, "uint8")],
        [x, inline_ref((3,), 0, "int64")],
        [x, inline_ref((2, 1), 0, "int64")],
        [x, inline_ref((), 0, "int64")],
    ):
        assert code_of(two, refs, bytes(64)) == "input.invalid"


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 6) | st.sampled_from([64, 4096, 1 << 40]), max_size=4),
    st.integers(0, 1),
    st.integers(0, SIZE + PAGE) | st.sampled_from([SIZE, 1 << 40]),
)
def test_any_reference_is_a_tensor_inside_or_refused(dtype: str, shape: list[int], place: int, offset: int) -> None:
    """For every row that decoding lets through: a tensor whose bytes are all in bounds, or BedsitError."""
    arena, body = make_mapped(), bytes(256)
    try:
        refs = wire.decode_response(wire.encode_tensor(dtype, shape, place, offset), 1)
        (x,) = read([spec_for(dtype, shape)], refs, body, arena)
    except BedsitError as e:
        assert e.code in ("wire.malformed", "input.invalid")
    else:
        assert list(x.shape) == shape
        assert x.nbytes == 0 or offset + x.nbytes <= (SIZE if place else len(body))
        x.clone()


@settings(deadline=None)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3), st.integers(-5, SIZE + PAGE))
def test_a_tensor_in_the_arena_is_inside_or_refused(dtype: str, shape: list[int], offset: int) -> None:
    """Also at a negative offset, or at the end."""
    arena = make_mapped()
    nbytes = wire.count_bytes(dtype, shape)
    if offset < 0:
        return
    try:
        x = tensor_at(dtype, tuple(shape), offset, arena)
    except BedsitError as e:
        assert e.code == "input.invalid"
        assert offset + nbytes > SIZE
    else:
        assert offset + nbytes <= SIZE
        assert not nbytes or x.data_ptr() == arena.address + offset


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_stay_inside_of_their_regions() -> None:
    """A value that is larger than its region is refused before a byte is written, with what all outputs need."""
    arena = make_mapped()
    specs = [TensorSpec(name, "float32", (-1,)) for name in ("a", "b")]
    values = [torch.ones(4), torch.ones(PAGE // 4 + 1)]
    with pytest.raises(BedsitError) as caught:
        write_to_regions(specs, values, [Region(0, PAGE), Region(PAGE, PAGE)], arena, ())
    assert (caught.value.code, caught.value.detail) == ("output.too_small", {"needed": [16, PAGE + 4]})
    assert arena.pages[:] == bytes(SIZE)
    write_to_regions(specs, values, [Region(0, PAGE), Region(PAGE, PAGE + 4)], arena, ())


@pytest.mark.parametrize("regions", [[], [Region(0, PAGE)], [Region(0, PAGE)] * 3])
def test_a_wrong_number_of_regions_is_refused(regions: list[Region]) -> None:
    """One for each output, or none at all."""
    specs = [TensorSpec(name, "float32", (-1,)) for name in ("a", "b")]
    with pytest.raises(BedsitError) as caught:
        write_to_regions(specs, [torch.ones(1)] * 2, regions, make_mapped(), ())
    assert caught.value.code == "input.invalid"


@pytest.mark.parametrize(
    "region",
    [
        Region(SIZE - 64, 128),
        Region(1 << 40, PAGE),
        Region(0, 1 << 40),
        Region(SIZE, 64),
        Region(32, PAGE),
        Region(1, 64),
    ],
)
@pytest.mark.parametrize("elements", [0, 4])
def test_regions_outside_of_the_arena_are_refused(region: Region, elements: int) -> None:
    """A client's region is checked against this worker's own mapping."""
    arena = make_mapped()
    with pytest.raises(BedsitError) as caught:
        write_to_regions([SPEC], [torch.ones(elements)], [region], arena, ())
    assert caught.value.code == "input.invalid"
    assert arena.pages[:] == bytes(SIZE)


def test_outputs_too_large_for_a_packet_ask_for_room() -> None:
    """Without regions an answer holds at most the inline limit, padding included; the need of each output is told."""
    inline = Inline([SPEC])
    inline.find_header([torch.ones(INLINE_BYTES // 4)])
    for _ in range(2):
        with pytest.raises(BedsitError) as caught:
            inline.find_header([torch.ones(INLINE_BYTES // 4 + 1)])
        assert caught.value.detail == {"needed": [INLINE_BYTES + 4]}
    two = Inline([SPEC, TensorSpec("w", "uint8", (-1,))])
    two.find_header([torch.ones(INLINE_BYTES // 4 - 16), torch.ones(64, dtype=torch.uint8)])
    with pytest.raises(BedsitError) as caught:
        two.find_header([torch.ones(INLINE_BYTES // 4 - 16), torch.ones(65, dtype=torch.uint8)])
    assert caught.value.detail == {"needed": [INLINE_BYTES - 64, 65]}


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(4, dtype=torch.float64),
        torch.ones(2, 2),
        torch.tensor(1.0),
        torch.ones(4, dtype=torch.complex64),
        torch.ones(4, dtype=torch.int32),
        torch.ones(4, dtype=torch.uint16),
        torch.ones(4).to(torch.bfloat16),
    ],
    ids=range(7),
)
def test_outputs_that_are_not_declared_are_refused(value: torch.Tensor) -> None:
    """Another dtype or rank is ``output.invalid`` and says both what came and what was declared."""
    inline = Inline([SPEC])
    for write in (
        lambda: inline.find_header([value]),
        lambda: write_to_regions([SPEC], [value], [Region(0, PAGE)], make_mapped(), ()),
    ):
        for _ in range(2):
            with pytest.raises(BedsitError) as caught:
                write()
            assert caught.value.code == "output.invalid"
            assert str(value.dtype).removeprefix("torch.") in caught.value.message
            assert "x: float32[*]" in caught.value.hint


def test_headers_are_remembered_and_bounded() -> None:
    """Thousands of shapes leave some hundreds behind, and none of them is taken for another."""
    inline = Inline([SPEC])
    for elements in range(1000):
        (ref,) = wire.decode_response(inline.find_header([torch.ones(elements)]), 1)
        assert ref.shape == (elements,)
    assert len(inline._headers) <= 256


_ODD: dict[str, Callable[[torch.dtype], torch.Tensor]] = {
    "transposed": lambda kind: torch.arange(6).to(kind).reshape(2, 3).T,
    "strided": lambda kind: torch.arange(40).to(kind).reshape(4, 10)[::2, ::3],
    "expanded": lambda kind: torch.ones(1, dtype=kind).expand(3, 4),
    "offset": lambda kind: torch.arange(40).to(kind).reshape(4, 10)[1:3],
    "grad": lambda kind: torch.ones(2, 2, dtype=kind, requires_grad=True),
    "grad transposed": lambda kind: torch.ones(2, 3, dtype=kind, requires_grad=True).T,
    "result of grad": lambda kind: torch.ones(2, 3, dtype=kind, requires_grad=True) * 2,
    "conj": lambda kind: torch.conj((torch.arange(6).to(kind) + 2j).reshape(2, 3)),
    "conj transposed": lambda kind: (torch.arange(6).to(kind) + 2j).reshape(2, 3).mH,
    "neg": lambda kind: torch.conj((torch.arange(6).to(kind) + 2j).reshape(2, 3)).imag,
    "neg contiguous": lambda kind: torch._neg_view(torch.arange(6).to(kind).reshape(2, 3)),
    "parameter": lambda kind: torch.nn.Parameter(torch.ones(2, 2, dtype=kind)),
}
_KINDS = {
    name: ["complex64", "complex128"] if "conj" in name or name == "neg" else ["float32", "bfloat16", "float64"]
    for name in _ODD
}


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, dtypes in _KINDS.items() for dtype in dtypes])
def test_outputs_are_written_as_what_they_show(name: str, dtype: str) -> None:
    """However a value lies in memory, with a gradient or without, turned round lazily or not: inline and by region."""
    value = _ODD[name](TORCH_DTYPES[dtype])
    spec = TensorSpec("x", str(value.dtype).removeprefix("torch."), (-1, -1))
    inline = Inline([spec])
    for _ in range(2):
        refs = wire.decode_response(inline.find_header([value]), 1)
        assert same(read([spec], refs, inline.collect([value]))[0], value)
    arena = make_mapped()
    refs = wire.decode_response(write_to_regions([spec], [value], [Region(PAGE, PAGE)], arena, ()), 1)
    assert same(read([spec], refs, arena=arena)[0], value)
    assert arena.pages[:PAGE] == bytes(PAGE)


# --- outputs that lie in the arena already ----------------------------------------------------------------------------


def _written(
    values: Sequence[torch.Tensor], regions: Sequence[Region], arena: Mapped, places: Sequence[Place] = ()
) -> Any:
    """The references of an answer, and what is read there; each value is still what it was."""
    specs = [spec_for(str(value.dtype).removeprefix("torch."), value.shape) for value in values]
    shown = [value.detach().clone() for value in values]
    refs = wire.decode_response(write_to_regions(specs, values, regions, arena, places), len(values))
    got = [read([spec], [ref], arena=arena)[0] for spec, ref in zip(specs, refs, strict=True)]
    for value, back in zip(shown, got, strict=True):
        assert same(back, value), (value, back)
    return refs


def _room(arena: Mapped, offset: int, shape: Sequence[int], start: float = 1.0) -> torch.Tensor:
    """A tensor in the arena with elements that differ."""
    room = tensor_at("float32", tuple(shape), offset, arena)
    return room.copy_(torch.arange(room.numel()).reshape(room.shape) + start)


def _input(arena: Mapped, offset: int, shape: Sequence[int], dtype: str = "float32") -> tuple[Place, torch.Tensor]:
    """An input in the arena, and its place."""
    (place,) = find_places([spec_for(dtype, shape)], [arena_ref(shape, offset, dtype)], 0)
    return place, view(place, bytearray(), arena)


def test_an_output_in_its_own_region_is_not_copied() -> None:
    """It is named where it lies, as long as it is, and nothing else in the arena changes."""
    arena = make_mapped()
    y = _room(arena, PAGE, (100,))
    before = arena.pages[:]
    assert _written([y], [Region(PAGE, PAGE)], arena) == (arena_ref((100,), PAGE),)
    assert _written([y[:10]], [Region(PAGE, PAGE)], arena) == (arena_ref((10,), PAGE),)
    assert _written([y.reshape(4, 25)], [Region(PAGE, PAGE)], arena) == (arena_ref((4, 25), PAGE),)
    assert arena.pages[:] == before


def test_an_output_inside_of_an_input_is_not_copied() -> None:
    """The input itself, or a part of it that is in one piece; its region stays untouched."""
    arena = make_mapped()
    place, x = _input(arena, PAGE + 64, (100,))
    x.copy_(torch.arange(100.0))
    room = [Region(4 * PAGE, PAGE)]
    for value, at in ((x, 0), (x[10:20], 40), (x.reshape(20, 5)[3], 60), (x.view(torch.int32), 0)):
        (ref,) = _written([value], room, arena, [place])
        assert ref.offset == PAGE + 64 + at
    assert arena.pages[4 * PAGE : 5 * PAGE] == bytes(PAGE)


def test_an_output_in_other_memory_of_the_arena_is_copied() -> None:
    """A view of the arena that is no input of this request, or hangs over its end, is written to the region."""
    arena = make_mapped()
    place, _ = _input(arena, PAGE, (100,))
    room = [Region(4 * PAGE, PAGE)]
    for offset, elements in ((PAGE - 4, 10), (PAGE, 101), (PAGE + 396, 2), (0, 1), (8 * PAGE, 1)):
        value = _room(arena, offset, (elements,))
        (ref,) = _written([value], room, arena, [place])
        assert ref.offset == 4 * PAGE
    inline, packet = find_places([SPEC], [inline_ref((4,), 0)], PAGE)[0], bytearray(2 * PAGE)
    (ref,) = _written([view(inline, packet, None)], room, arena, [inline])
    assert ref.offset == 4 * PAGE
    # Offsets into a packet are not offsets into the arena.
    (ref,) = _written([_room(arena, PAGE, (4,))], room, arena, [inline])
    assert ref.offset == 4 * PAGE


@pytest.mark.parametrize(
    "turn",
    [
        lambda y: y.T,
        lambda y: y.T.contiguous(),
        lambda y: y[1:],
        lambda y: y[:, 1:],
        lambda y: y[::2],
        lambda y: y[:, :1].expand(8, 8),
        lambda y: y.reshape(-1)[5:20],
        lambda y: y.reshape(-1)[7::3],
        lambda y: y.flip(0),
        lambda y: y.double(),
        torch._neg_view,
    ],
    ids=range(11),
)
def test_a_view_of_its_own_region_in_another_order_is_written_as_it_shows(turn: Any) -> None:
    """A model may return what it wrote there transposed, shifted or with gaps: it is read before it is overwritten."""
    arena = make_mapped()
    value = turn(_room(arena, PAGE, (8, 8)))
    _written([value], [Region(PAGE, PAGE)], arena)


def test_outputs_that_lie_in_each_others_regions_are_written_as_they_show() -> None:
    """Exchanged, the same one twice, or one a view of the other's: no copy destroys the source of the next one."""
    arena = make_mapped()
    regions = [Region(PAGE, PAGE), Region(2 * PAGE, PAGE), Region(3 * PAGE, PAGE)]

    def rooms() -> list[torch.Tensor]:
        return [_room(arena, (1 + index) * PAGE, (6, 6), 100.0 * index) for index in range(3)]

    for order in ((1, 0, 2), (1, 2, 0), (2, 1, 0), (0, 0, 0), (1, 1, 1), (2, 0, 2)):
        a = rooms()
        _written([a[index] for index in order], regions, arena)
    a = rooms()
    _written([torch.zeros(6, 6), a[0].T, a[0][1:]], regions, arena)
    a = rooms()
    _written([a[1][2:], torch.zeros(6, 6), a[1].T], regions, arena)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_a_conjugate_in_place_is_not_taken_for_its_bytes(dtype: str) -> None:
    """torch conjugates when it reads: what lies in the input, or in the region, is not what the output shows."""
    arena = make_mapped()
    place, x = _input(arena, PAGE, (10,), dtype)
    x.copy_(torch.arange(10) * (1 + 2j))
    (ref,) = _written([x.conj()], [Region(4 * PAGE, PAGE)], arena, [place])
    assert ref.offset == 4 * PAGE
    y = tensor_at(dtype, (10,), 4 * PAGE, arena).copy_(x)
    _written([y.conj()], [Region(4 * PAGE, PAGE)], arena)
    _written([x.conj().imag], [Region(4 * PAGE, PAGE)], arena, [place])
    (ref,) = _written([x.conj().conj()], [Region(4 * PAGE, PAGE)], arena, [place])
    assert ref.offset == PAGE


def test_an_output_in_place_that_is_not_aligned_is_copied() -> None:
    """A client takes no array at an odd address: bytes of an input looked at as larger numbers go to the region."""
    arena = make_mapped()
    place, x = _input(arena, PAGE + 1, (400,), "uint8")
    x.copy_(torch.arange(400) % 256)
    (ref,) = _written([x.view(torch.int32)], [Region(4 * PAGE, PAGE)], arena, [place])
    assert ref.offset == 4 * PAGE
    (ref,) = _written([x[3:7]], [Region(4 * PAGE, PAGE)], arena, [place])
    assert ref.offset == PAGE + 4


def test_an_empty_output_lies_in_its_region() -> None:
    """Without a byte there is nothing to be in place."""
    arena = make_mapped()
    place, x = _input(arena, PAGE, (10,))
    assert _written([x[:0]], [Region(4 * PAGE, PAGE)], arena, [place]) == (arena_ref((0,), 4 * PAGE),)


def test_an_output_in_place_needs_no_room() -> None:
    """A region that is too small does not matter for what is not copied into it."""
    arena = make_mapped()
    place, x = _input(arena, PAGE, (2000,))
    (ref,) = _written([x], [Region(8 * PAGE, 64)], arena, [place])
    assert ref == arena_ref((2000,), PAGE)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_views_of_the_arena_are_written_as_they_show(data: Any) -> None:
    """Three outputs, each any view of any of the regions, of an input or of memory of its own: none harms another."""
    arena = make_mapped()
    regions = [Region(index * PAGE, PAGE) for index in (1, 2, 3)]
    place, x = _input(arena, 5 * PAGE, (8, 8))
    sources = [_room(arena, index * PAGE, (8, 8), 100.0 * index) for index in (1, 2, 3)]
    sources += [x.copy_(torch.arange(64.0).reshape(8, 8)), torch.arange(64.0).reshape(8, 8) + 900]
    values = []
    for _ in range(3):
        value = data.draw(st.sampled_from(sources))
        for _ in range(data.draw(st.integers(0, 3))):
            value = data.draw(
                st.sampled_from([value.T, value[1:], value[:, 1:], value[::2], value[:, ::2], value[:1].expand(8, -1)])
            )
        values.append(value)
    _written(values, regions, arena, [place])


def test_references_are_the_wires() -> None:
    """What is written is read by the client's own decoder: dtype, shape, place and offset, and the bytes they take."""
    arena = make_mapped()
    (ref,) = _written([torch.ones(3, 4)], [Region(2 * PAGE, PAGE)], arena)
    assert ref == TensorRef("float32", (3, 4), wire.Place.ARENA, 2 * PAGE, 3 * 4 * ITEM_BYTES["float32"])
