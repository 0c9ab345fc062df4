"""From requests to answers, with a real session on the other side: single calls, batches, and whatever goes wrong."""

import gc
import io
import sys
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedsit.ipc import wire
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.leasepage import LeasePage, LeaseView
from bedsit.ipc.manifest import DTYPES
from bedsit.ipc.slot import Word
from bedsit.ipc.tensors import as_torch
from bedsit.ipc.wire import INLINE_BYTES, Kind
from bedsit.sandbox.worker.calls import as_failure
from bedsit.sandbox.worker.turns import Turns
from tests_support.packets import Y, arena_ref, inline_ref, row_of, some_values, take_apart
from tests_support.workers import NUMBER, SIZE, Desk, code_of, error_of

PAGE = 4096
_BATCH = {"max_rows": 64}
_RAGGED = {"max_rows": 64, "pad": 0}
_MATRIX = ("x", "float32", (-1, -1))
_MATRIX_OUT = ("y", "float32", (-1, -1))


def _numbers(count: int, start: float = 0.0) -> Any:
    return np.arange(count, dtype=np.float32) + np.float32(start)


# --- one request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4), (60, 70), (5000,)])
def test_every_dtype_and_shape_travels_to_a_model_and_back(dtype: str, shape: tuple[int, ...]) -> None:
    """From a caller's array to the model's tensor and back to the caller: inline and by region."""
    free = (-1,) * len(shape)
    desk = Desk(lambda x: x.clone(), [("x", dtype, free)], [("y", dtype, free)], tensors="torch")
    values = some_values(dtype, shape)
    wanted = as_torch(values.copy(), dtype)
    for value in (values, wanted):
        got = desk.infer(x=value)["y"]
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert desk.seen[-1][0].dtype == wanted.dtype
        if wanted.numel():
            assert got.reshape(-1).view(torch.uint8).equal(wanted.reshape(-1).view(torch.uint8))


def test_small_inputs_and_outputs_need_no_arena() -> None:
    """They are in the packets alone."""
    desk = Desk(lambda x: x + 1)
    desk.arenas.clear()
    assert desk.infer(x=_numbers(100))["y"].tolist() == (_numbers(100) + 1).tolist()


def test_several_inputs_and_outputs_keep_their_order() -> None:
    """As a tuple, as a list and as a table; some in the arena, some in the packet."""
    inputs = [("a", "float32", (-1,)), ("b", "int64", (-1,)), ("c", "bool", ())]
    outputs = [("p", "int64", (-1,)), ("q", "float32", (-1,))]
    for call in (
        lambda a, b, c: (b + 1, a * 2),
        lambda a, b, c: [b + 1, a * 2],
        lambda a, b, c: {"q": a * 2, "p": b + 1, "more": c},
    ):
        desk = Desk(call, inputs, outputs)
        for n, m in ((3, 3), (5000, 3), (3, 5000), (5000, 5000)):
            got = desk.infer(a=_numbers(n), b=np.arange(m), c=np.array(True))
            assert got["q"].tolist() == (_numbers(n) * 2).tolist()
            assert got["p"].tolist() == (np.arange(m) + 1).tolist()


def test_inputs_in_the_arena_are_the_callers_memory() -> None:
    """The model sees the array itself."""
    desk = Desk(lambda x: x.sum()[None])
    array = desk.session.arena.empty(5000, "float32")
    array[...] = 2.0
    assert desk.infer(x=array[10:20])["y"][0] == 20.0
    ((x,),) = desk.seen
    assert x.data_ptr() == desk.arena.address + 10 * 4
    assert x.shape == (10,)


def test_a_model_may_keep_its_inputs() -> None:
    """What came in a packet stays as it was when the next packets have come."""
    kept: list[torch.Tensor] = []
    desk = Desk(lambda x: kept.append(x) or x)
    for start in range(5):
        desk.infer(x=_numbers(4, start))
    assert [x.tolist() for x in kept] == [_numbers(4, start).tolist() for start in range(5)]


def test_room_that_is_too_small_is_told_and_then_made() -> None:
    """An output that cannot be guessed: the need of every output is said, the second try has room."""
    desk = Desk(lambda x: (x.repeat(10_000), x), outputs=[("y", "float32", (-1,)), ("z", "float32", (-1,))])
    (pending,) = desk.infer_all({"x": _numbers(1, 5)})
    assert pending.failure is not None
    assert (pending.failure.code, pending.failure.detail) == ("output.too_small", {"needed": [40_000, 4]})
    got = desk.infer(x=_numbers(1, 5))
    assert (got["y"].shape, got["y"][-1], got["z"].tolist()) == ((10_000,), 5.0, [5.0])
    # By now there are rooms; one that is too small for this input is told as well.
    (pending,) = desk.infer_all({"x": _numbers(2)})
    assert pending.failure is not None
    assert pending.failure.detail == {"needed": [80_000, 8]}


def test_requests_are_checked_once_and_each_is_checked() -> None:
    """Headers are remembered, bounded; the same one for another model, or with another arena, is looked at anew."""
    desk = Desk(lambda x: x + 1)
    for count in range(600):
        assert desk.infer(x=_numbers(count))["y"].shape == (count,)
    assert len(desk.calls._plans) <= 256
    pending, packet = desk.session.begin(desk.info, None, {"x": _numbers(5000)}, 0)
    (reply,) = desk.answer(packet)
    assert wire.read_route(reply) == (Kind.RESPONSE, pending.id)
    other = desk.open_arena(NUMBER + 1, PAGE)
    (reply,) = desk.answer(wire.readdress(packet, Kind.REQUEST, 9, other.number))
    assert error_of(reply).code == "input.invalid"
    (reply,) = desk.answer(wire.readdress(packet, Kind.REQUEST, 9, 12345))
    assert error_of(reply).code == "input.invalid"
    # Another model, another version, another number of tensors or of regions.
    for at, code in ((24, "model.not_found"), (28, "model.not_found"), (44, "wire.malformed"), (45, "wire.malformed")):
        stranger = bytearray(packet)
        stranger[at] ^= 2
        (reply,) = desk.answer(bytes(stranger))
        assert error_of(reply).code == code
    (reply,) = desk.answer(wire.readdress(packet, Kind.REQUEST, 10, NUMBER))
    assert wire.read_route(reply) == (Kind.RESPONSE, 10)


# --- outputs in place -------------------------------------------------------------------------------------------------


def test_an_output_made_in_the_callers_memory_is_not_copied() -> None:
    """``bundle.output`` gives the room that the caller reserved; returning it moves nothing."""

    def call(x: torch.Tensor) -> torch.Tensor:
        y = desk.bundle.output("y", x.shape)
        given.append(y.data_ptr())
        return torch.mul(x, 2, out=y)

    given: list[int] = []
    desk = Desk(call)
    got = desk.infer(x=_numbers(5000))["y"]
    assert got.tolist() == (_numbers(5000) * 2).tolist()
    assert got.ctypes.data - desk.session.arena.address == given[0] - desk.arena.address
    # Small outputs have no room reserved, and after a call nothing is lent.
    assert desk.infer(x=_numbers(5))["y"].tolist() == (_numbers(5) * 2).tolist()
    assert not 0 <= given[1] - desk.arena.address < SIZE
    outside = desk.bundle.output("y", (5000,))
    assert not 0 <= outside.data_ptr() - desk.arena.address < SIZE


def test_a_room_of_another_form_is_of_the_models_own_memory() -> None:
    """Another dtype, or more than was reserved: the model goes on, the answer is judged as ever."""
    desk = Desk(lambda x: desk.bundle.output("y", x.shape, torch.float64).fill_(3).float())
    assert desk.infer(x=_numbers(5000))["y"].tolist() == [3.0] * 5000
    desk = Desk(lambda x: desk.bundle.output("y", (x.shape[0] * 10,)).fill_(4))
    assert desk.infer(x=_numbers(5000))["y"].tolist() == [4.0] * 50_000
    desk = Desk(lambda x: desk.bundle.output("y", x.shape, torch.float64).fill_(3))
    assert desk.refusal(x=_numbers(5000)) == "output.invalid"
    desk = Desk(lambda x: desk.bundle.output("w", x.shape))
    assert desk.refusal(x=_numbers(5000)) == "model.failed"


def test_a_room_is_lent_for_one_call() -> None:
    """A model that fails, or keeps what it was lent, does not get it for the next call."""
    kept: list[torch.Tensor] = []

    def call(x: torch.Tensor) -> torch.Tensor:
        kept.append(desk.bundle.output("y", x.shape))
        if x[0] == 1:
            raise RuntimeError("told to")
        return kept[-1].fill_(x[0])

    desk = Desk(call)
    assert desk.refusal(x=_numbers(5000, 1)) == "model.failed"
    assert not 0 <= desk.bundle.output("y", (5000,)).data_ptr() - desk.arena.address < SIZE
    first = desk.infer(x=_numbers(5000, 2))["y"]
    second = desk.infer(x=_numbers(5000, 3))["y"]
    assert (first[0], second[0]) == (2.0, 3.0)
    assert kept[1].data_ptr() != kept[2].data_ptr()


@pytest.mark.parametrize(
    ("turn", "elements"),
    [(lambda x: x, 5000), (lambda x: x[100:200], 100), (lambda x: x.reshape(50, 100)[7], 100), (lambda x: x[1:], 4999)],
    ids=range(4),
)
def test_an_output_that_is_a_part_of_an_input_is_not_copied(turn: Any, elements: int) -> None:
    """The caller gets a view of its own array."""
    desk = Desk(turn)
    array = desk.session.arena.empty(5000, "float32")
    array[...] = _numbers(5000)
    y = desk.infer(x=array)["y"]
    assert y.shape == (elements,)
    assert np.shares_memory(y, array)
    assert y.tolist() == turn(torch.from_numpy(array.copy())).tolist()


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.conj(),
        lambda x: x.mH,
        lambda x: x.conj()[1:, 1:],
        lambda x: x.T,
        lambda x: x[::2],
        lambda x: x[:, ::3],
        lambda x: x[:1].expand(x.shape),
        lambda x: -x,
        torch._neg_view,
        lambda x: x.flip(0),
        lambda x: x.conj().clone(),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("in_arena", [True, False])
@pytest.mark.parametrize("shape", [(60, 70), (6, 7)])
def test_outputs_are_what_the_model_shows(turn: Any, in_arena: bool, shape: tuple[int, int]) -> None:  # noqa: FBT001
    """Lazily conjugated, negated, transposed, with gaps, expanded: in the caller's memory or not, large or small."""
    desk = Desk(turn, [("x", "complex64", (-1, -1))], [("y", "complex64", (-1, -1))])
    values = some_values("complex64", shape)
    x = values
    if in_arena:
        x = desk.session.arena.empty(shape, "complex64")
        x[...] = values
    got = desk.infer(x=x)["y"]
    assert got.tolist() == turn(torch.from_numpy(values)).resolve_conj().resolve_neg().tolist()


def test_an_output_may_need_a_gradient() -> None:
    """A parameter, and what was computed of one, travel as their values."""
    weight = torch.nn.Parameter(torch.full((5000,), 3.0))
    for call in (lambda x: weight[: x.shape[0]], lambda x: weight, lambda x: weight[: x.shape[0]] * 2):
        desk = Desk(call)
        for count in (5, 5000):
            with torch.inference_mode(mode=False):
                assert set(desk.infer(x=_numbers(count))["y"].tolist()) <= {3.0, 6.0}


def test_two_outputs_may_be_the_same_memory() -> None:
    """One tensor twice, two exchanged rooms, one room transposed: each output is what it was when it was returned."""
    outputs = [("y", "float32", (-1, -1)), ("z", "float32", (-1, -1))]

    def exchange(x: torch.Tensor) -> Any:
        y = desk.bundle.output("y", x.shape).copy_(x)
        z = desk.bundle.output("z", x.shape).copy_(x + 1000)
        return z, y

    def twice(x: torch.Tensor) -> Any:
        return (desk.bundle.output("y", x.shape).copy_(x).T,) * 2

    def beside(x: torch.Tensor) -> Any:
        return x * 2, desk.bundle.output("y", x.shape).copy_(x)

    x = _numbers(4900).reshape(70, 70)
    for call, y, z in ((exchange, x + 1000, x), (lambda x: (x, x), x, x), (twice, x.T, x.T), (beside, x * 2, x)):
        desk = Desk(call, [_MATRIX], outputs)
        got = desk.infer(x=x)
        assert got["y"].tolist() == y.tolist()
        assert got["z"].tolist() == z.tolist()


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda x: x.double(), "output.invalid"),
        (lambda x: x[None], "output.invalid"),
        (lambda x: x.sum(), "output.invalid"),
        (lambda x: (x, x), "output.invalid"),
        (lambda x: (), "output.invalid"),
        (lambda x: None, "output.invalid"),
        (lambda x: x.numpy(), "output.invalid"),
        (lambda x: [1.0], "output.invalid"),
        (lambda x: {"z": x}, "output.invalid"),
        (lambda x: {}, "output.invalid"),
        (lambda x: "y", "output.invalid"),
        (lambda x: x.to_sparse(), "model.failed"),
        (lambda x: x.to("meta"), "model.failed"),
        (lambda x: 1 / 0, "model.failed"),
        (lambda x: x.reshape(-1, 7), "model.failed"),
        (lambda: None, "model.failed"),
    ],
    ids=range(16),
)
@pytest.mark.parametrize("count", [4, 5000])
def test_a_model_that_gives_something_else_is_told_apart(call: Any, code: str, count: int) -> None:
    """What was returned in another form than declared is ``output.invalid``, what was raised ``model.failed``."""
    desk = Desk(call)
    assert desk.refusal(x=_numbers(count)) == code
    desk.model = lambda x: x
    assert desk.infer(x=_numbers(count))["y"].tolist() == _numbers(count).tolist()


@pytest.mark.parametrize("rooms", [1, 3])
def test_a_header_that_lies_is_only_an_error(rooms: int) -> None:
    """Packets that no client of ours sends: each is answered, under its own id, and the next good one is too."""
    desk = Desk(lambda x: x + 1)
    good = row_of(inline_ref((4,)))
    region = wire.encode_region(PAGE, PAGE)
    packets = [
        (b"", 0, 0),
        (good, 0, 0),
        (good, 2, 0),
        (good + good, 2, 0),
        (good[:-1], 1, 0),
        (good + b"\0", 1, 0),
        (good + region * rooms, 1, rooms + 1),
        (good + region * 2, 1, 2),
        (good + wire.encode_region(SIZE, PAGE), 1, 1),
        (good + wire.encode_region(PAGE + 4, PAGE), 1, 1),
        (good + wire.encode_region(1 << 40, 1 << 40), 1, 1),
        (row_of(inline_ref((5,))), 1, 0),
        (row_of(inline_ref((4,), 4)), 1, 0),
        (row_of(inline_ref((4,), 1)), 1, 0),
        (row_of(inline_ref((4, 1))), 1, 0),
        (row_of(inline_ref((2,), 0, "float64")), 1, 0),
        (row_of(arena_ref((4,), SIZE - 12)), 1, 0),
        (row_of(arena_ref((1 << 38,), 0)), 1, 0),
        (row_of(arena_ref((4,), 2)), 1, 0),
        (b"\xff" * 64, 4, 0),
    ]
    for ident, (header, tensors, regions) in enumerate(packets, start=1):
        packet = wire.pack_packet(
            Kind.REQUEST,
            ident,
            header,
            bytes(16),
            tensors=tensors,
            regions=regions,
            model=desk.info.number,
            model_version=desk.info.version,
            arena=NUMBER,
        )
        (reply,) = desk.answer(packet)
        assert wire.read_route(reply) == (Kind.ERROR, ident)
        assert error_of(reply).code in ("wire.malformed", "input.invalid"), ident
    assert desk.infer(x=_numbers(4))["y"].tolist() == (_numbers(4) + 1).tolist()


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 130), st.integers(0, 255)), max_size=6),
    st.binary(max_size=40),
    st.booleans(),
)
def test_a_damaged_request_gets_one_answer(changes: list[tuple[int, int]], tail: bytes, large: bool) -> None:  # noqa: FBT001
    """Bytes changed anywhere behind its route: a RESPONSE or an ERROR under its id comes of it, and no exception."""
    desk = Desk(lambda x: x + 1)
    _, packet = desk.session.begin(desk.info, None, {"x": _numbers(5000 if large else 4)}, 0)
    damaged = bytearray(packet) + tail
    for at, value in changes:
        damaged[wire.ROUTE_BYTES + at % (len(damaged) - wire.ROUTE_BYTES)] = value
    try:
        fields = wire.read_fields(damaged)
    except BedsitError:
        return  # the lane drops it
    (reply,) = desk.answer(bytes(damaged))
    envelope = wire.read_envelope(reply)
    assert (envelope.id, envelope.kind in (Kind.RESPONSE, Kind.ERROR)) == (fields[4], True)
    if envelope.kind == Kind.ERROR:
        assert error_of(reply).code in ("wire.malformed", "input.invalid", "output.too_small", "model.not_found")


def test_another_kind_of_packet_is_no_request() -> None:
    """The router sends none; an answer all the same."""
    desk = Desk(lambda x: x)
    _, packet = desk.session.begin(desk.info, None, {"x": _numbers(4)}, 0)
    (reply,) = desk.answer(wire.readdress(packet, Kind.ASK, 5, NUMBER))
    assert error_of(reply).code == "model.not_found"


def test_a_cancelled_request_does_not_run() -> None:
    """It is answered with ``request.cancelled``; the others of its batch run."""
    desk = Desk(lambda x: x + 1, batch=_BATCH)
    pendings = desk.infer_all(*({"x": _numbers(2, n)} for n in range(3)), cancelled=[1])
    assert [code_of(pending) for pending in pendings] == ["", "request.cancelled", ""]
    assert [len(inputs[0]) for inputs in desk.seen] == [4]
    pendings = desk.infer_all({"x": _numbers(2)}, cancelled=[0])
    assert code_of(pendings[0]) == "request.cancelled"
    assert len(desk.seen) == 1


def test_what_is_withdrawn_while_it_waits_for_its_turn_does_not_run() -> None:
    """Each request is asked about when its turn has begun as well; the others of its batch run."""
    desk = Desk(lambda x: x + 1, batch=_BATCH)
    begun = [desk.session.begin(desk.info, None, {"x": _numbers(2)}, 0) for _ in range(3)]
    orders = [desk.order(packet) for _, packet in begun]
    answers = iter([False, False, False, False, True, False])
    desk.calls.answer(orders, lambda _order: next(answers))
    assert sorted(wire.read_envelope(reply).kind for reply in desk.replies) == [
        Kind.RESPONSE,
        Kind.RESPONSE,
        Kind.ERROR,
    ]
    assert [len(inputs[0]) for inputs in desk.seen] == [4]


def test_a_batch_that_is_refused_is_answered_in_its_turn(tmp_path: Path) -> None:
    """Its last answer ends its turn: what is behind it would run in that if it came before."""
    page = LeasePage(tmp_path / "lease")
    page.revoke()
    said: list[tuple[Word, int]] = []
    view = LeaseView.open(str(tmp_path / "lease"))
    turns = Turns(view, lambda: bool(page.grant(1 << 62)), lambda *it: said.append(it), finish=lambda: True)
    desk = Desk(lambda x: x + 1, batch=_BATCH, turns=turns)
    order = desk.order(desk.session.begin(desk.info, None, {"x": _numbers(2)}, 0)[1])
    desk.calls.answer([order], lambda _order: True)
    assert [error_of(reply).code for reply in desk.replies] == ["request.cancelled"]
    assert (said, page.epoch) == ([(Word.END, 1)], 1)
    page.close()


# --- batches ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9) | st.sampled_from([700, 3000]), min_size=2, max_size=6),
    st.booleans(),
    st.sampled_from(["float32", "bfloat16", "int64", "complex64", "bool"]),
)
def test_a_batch_gives_what_single_calls_give(rows: list[int], in_arena: bool, dtype: str) -> None:  # noqa: FBT001
    """Small and large requests, in packets and in the arena, mixed: one call of the model, the same answers."""
    desk = Desk(
        lambda x: (x, x.clone()), [("x", dtype, (-1, 2))], [("y", dtype, (-1, 2)), ("z", dtype, (-1, 2))], batch=_BATCH
    )
    values = [some_values(dtype, (count, 2), 7 * index) for index, count in enumerate(rows)]
    inputs = []
    for value in values:
        x = value
        if in_arena:
            x = desk.session.arena.empty(value.shape, dtype)
            x[...] = value
        inputs.append({"x": x})
    pendings = desk.infer_all(*inputs)
    assert len(desk.seen) == 1
    for value, pending in zip(values, pendings, strict=True):
        assert code_of(pending) == ""
        for output in pending.take().values():
            assert output.tobytes() == value.tobytes()


def test_neighbours_in_one_arena_are_one_view() -> None:
    """Inputs one behind the other are not copied: the model sees the caller's memory, and so does its answer."""
    desk = Desk(lambda x: x, [("x", "float32", (-1, 10))], [("y", "float32", (-1, 10))], batch=_BATCH)
    array = desk.session.arena.empty((600, 10), "float32")
    array[...] = _numbers(6000).reshape(600, 10)
    parts = [array[:200], array[200:250], array[250:600]]
    pendings = desk.infer_all(*({"x": part} for part in parts))
    ((x,),) = desk.seen
    assert (x.data_ptr(), tuple(x.shape)) == (desk.arena.address, (600, 10))
    for part, pending in zip(parts, pendings, strict=True):
        y = pending.take()["y"]
        assert y.tolist() == part.tolist()
        assert np.shares_memory(y, array) == (part.nbytes > INLINE_BYTES or pending.info is None), part.shape


@pytest.mark.parametrize("order", [[1, 0], [0, 2], [0, 0], [1, 2, 0]])
def test_what_lies_elsewhere_is_stacked(order: list[int]) -> None:
    """In another order, with a gap, or the same array twice: a copy, and the right answers."""
    desk = Desk(lambda x: x + 1, batch=_BATCH)
    array = desk.session.arena.empty(9000, "float32")
    array[...] = _numbers(9000)
    parts = [array[index * 3000 : (index + 1) * 3000] for index in order]
    pendings = desk.infer_all(*({"x": part} for part in parts))
    ((x,),) = desk.seen
    assert not 0 <= x.data_ptr() - desk.arena.address < SIZE
    assert [p.take()["y"].tolist() for p in pendings] == [(part + 1).tolist() for part in parts]


def test_neighbours_of_other_sessions_are_none() -> None:
    """The same offsets in two arenas are two memories."""
    desk = Desk(lambda x: x + 1, batch=_BATCH)
    other = desk.open_arena(NUMBER + 1)
    here, there = desk.session.arena.empty(1000, "float32"), other.empty(2000, "float32")
    here[...], there[...] = 1.0, 2.0
    _, first = desk.session.begin(desk.info, None, {"x": here}, 0)
    sent = take_apart(first)
    header = row_of(arena_ref((1000,), sent.refs[0].offset + 4000))
    second = wire.pack_packet(
        Kind.REQUEST, 77, header, tensors=1, model=desk.info.number, model_version=desk.info.version, arena=NUMBER + 1
    )
    replies = desk.answer(first, second)
    assert [wire.read_route(reply)[0] for reply in replies] == [Kind.RESPONSE] * 2
    ((x,),) = desk.seen
    assert x.tolist() == [1.0] * 1000 + [2.0] * 1000
    gc.collect()


def test_a_batch_is_not_lent_any_room() -> None:
    """One call for many callers has no single place for its output: the model gets memory of its own."""
    desk = Desk(lambda x: torch.mul(x, 2, out=desk.bundle.output("y", x.shape)), batch=_BATCH)
    pendings = desk.infer_all({"x": _numbers(3000)}, {"x": _numbers(3000, 5)})
    assert len(desk.seen) == 1
    assert [p.take()["y"].tolist() for p in pendings] == [(_numbers(3000, n) * 2).tolist() for n in (0, 5)]


def test_a_request_that_spoils_a_batch_fails_alone() -> None:
    """The model raises for one row: each request runs by itself, and only that one fails."""

    def call(x: torch.Tensor) -> torch.Tensor:
        if (x == 13).any():
            raise ValueError("thirteen")
        return x + 1

    desk = Desk(call, batch=_BATCH)
    pendings = desk.infer_all(*({"x": _numbers(2, n)} for n in (0, 12, 20)))
    assert [code_of(pending) for pending in pendings] == ["", "model.failed", ""]
    assert [len(inputs[0]) for inputs in desk.seen] == [6, 2, 2, 2]
    assert pendings[2].take()["y"].tolist() == [21, 22]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum()[None] if x.shape[0] > 2 else x,
        lambda x: torch.cat([x, x]) if x.shape[0] > 2 else x,
        lambda x: x[:0] if x.shape[0] > 2 else x,
        lambda x: x.sum() if x.shape[0] > 2 else x,
        lambda x: x.double() if x.shape[0] > 2 else x,
        lambda x: (x, x) if x.shape[0] > 2 else x,
    ],
    ids=range(6),
)
def test_an_output_of_a_batch_that_cannot_be_told_apart_is_made_again_one_by_one(call: Any) -> None:
    """Too few rows, too many, none, no dimension: a model that cannot batch gives the right answers all the same.

    A wrong dtype or number of outputs is wrong however it is called.
    """
    desk = Desk(call, batch=_BATCH)
    pendings = desk.infer_all({"x": _numbers(2, 1)}, {"x": _numbers(2, 5)})
    assert {code_of(pending) for pending in pendings} <= {"", "output.invalid"}
    for pending, start in zip(pendings, (1, 5), strict=True):
        if not code_of(pending):
            assert pending.take()["y"].tolist() == _numbers(2, start).tolist()
    assert len(desk.seen) in (1, 3)


def test_rows_that_do_not_fit_into_an_answer_are_that_requests_own() -> None:
    """One request of a batch has too little room: it alone is ``output.too_small``, with what it alone needs."""
    desk = Desk(lambda x: x.repeat(1, 1000), [("x", "float32", (-1, 1))], [_MATRIX_OUT], batch=_BATCH)
    pendings = desk.infer_all({"x": _numbers(1).reshape(1, 1)}, {"x": _numbers(3).reshape(3, 1)})
    assert [code_of(pending) for pending in pendings] == ["", "output.too_small"]
    assert pendings[1].failure is not None
    assert pendings[1].failure.detail == {"needed": [12_000]}


_LENGTHS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5) | st.just(1500)), min_size=2, max_size=5)


@settings(deadline=None)
@given(_LENGTHS)
def test_ragged_requests_with_a_pad_give_what_single_calls_give(shapes: list[tuple[int, int]]) -> None:
    """Filled up, run together, and cut to their own lengths again."""
    desk = Desk(lambda x: (x * 2, x.sum(1)), [_MATRIX], [_MATRIX_OUT, ("z", "float32", (-1,))], batch=_RAGGED)
    values = [_numbers(rows * length, index).reshape(rows, length) for index, (rows, length) in enumerate(shapes)]
    pendings = desk.infer_all(*({"x": value} for value in values))
    assert len(desk.seen) == 1
    for value, pending in zip(values, pendings, strict=True):
        assert code_of(pending) == ""
        got = pending.take()
        assert got["y"].tolist() == (value * 2).tolist()
        assert np.allclose(got["z"], value.sum(1))


def test_requests_that_two_inputs_make_ragged_are_not_mixed_up() -> None:
    """An output that follows the second input is never cut to the length of the first: then each runs alone."""
    desk = Desk(
        lambda a, b: b * 2, [("a", "float32", (-1, -1)), ("b", "float32", (-1, -1))], [_MATRIX_OUT], batch=_RAGGED
    )
    lengths = [(2, 4), (4, 2), (3, 3)]
    requests = [{"a": np.ones((1, a), np.float32), "b": _numbers(b).reshape(1, b)} for a, b in lengths]
    for pending, request in zip(desk.infer_all(*requests), requests, strict=True):
        assert pending.take()["y"].tolist() == (request["b"] * 2).tolist()


def test_a_batch_of_a_model_that_is_not_batched_runs_one_by_one() -> None:
    """The router sends none; whoever does gets the answers of single calls."""
    desk = Desk(lambda x: x + 1)
    pendings = desk.infer_all({"x": _numbers(2)}, {"x": _numbers(3)})
    assert [p.take()["y"].tolist() for p in pendings] == [[1, 2], [1, 2, 3]]
    assert [len(inputs[0]) for inputs in desk.seen] == [2, 3]


def test_a_bad_request_in_a_batch_is_refused_and_the_others_run_together() -> None:
    """What is wrong with one packet is nobody else's error."""
    desk = Desk(lambda x: x + 1, batch=_BATCH)
    begun = [desk.session.begin(desk.info, None, {"x": _numbers(2, n)}, 0) for n in range(3)]
    bad = bytearray(begun[1][1])
    bad[wire.ENVELOPE_BYTES] = 255  # a dtype that there is not
    replies = desk.answer(begun[0][1], bytes(bad), begun[2][1])
    kinds = {wire.read_route(reply)[1]: wire.read_route(reply)[0] for reply in replies}
    assert [kinds[pending.id] for pending, _ in begun] == [Kind.RESPONSE, Kind.ERROR, Kind.RESPONSE]
    assert [len(inputs[0]) for inputs in desk.seen] == [4]


# --- what a model may raise -------------------------------------------------------------------------------------------


class _Odd(Exception):
    def __str__(self) -> str:
        raise ValueError


def _raising(e: BaseException) -> Callable[..., Any]:
    def call(*_: Any) -> None:
        raise copy(e)  # the list of parameters keeps its own, which would keep everything by its traceback

    return call


@pytest.mark.parametrize(
    ("e", "code", "text"),
    [
        (RuntimeError("told to"), "model.failed", "RuntimeError: told to"),
        (RuntimeError("x" * 10**6), "model.failed", "RuntimeError: xxx"),
        (RuntimeError("\udcff \0 \x1b[31m"), "model.failed", "RuntimeError"),
        (_Odd(), "model.failed", "_Odd"),
        (MemoryError(), "model.failed", "MemoryError"),
        (RecursionError("deep"), "model.failed", "RecursionError"),
        (error("input.invalid", "not mine", "another"), "input.invalid", "not mine"),
        (error("output.invalid", "mine"), "output.invalid", "mine"),
        (error("queue.full", "not its own to say"), "model.failed", "ResourceExhausted"),
        (error("key.invalid", "not its own to say"), "model.failed", "PermissionDenied"),
        (error("input.invalid", "x" * 10**5), "model.failed", "InvalidRequest"),
        (error("input.invalid", "x", detail=object()), "model.failed", "InvalidRequest"),
        (BedsitError("input.invalid", "x"), "model.failed", "BedsitError"),
        (BedsitError("no.such_code", "x"), "model.failed", "BedsitError"),
        (BedsitError([], "x"), "model.failed", "BedsitError"),  # type: ignore[arg-type]
    ],
    ids=range(15),
)
def test_whatever_a_model_raises_is_one_short_error(
    e: BaseException, code: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of ours goes as it is; everything else is ``model.failed`` with its class, and in the tenant's log."""
    desk = Desk(_raising(e))
    (pending,) = desk.infer_all({"x": _numbers(2)})
    assert code_of(pending) == code
    assert pending.failure is not None
    assert text in pending.failure.message
    assert len(pending.failure.message) <= 2000
    assert ("Traceback" in capsys.readouterr().err) == (code == "model.failed")
    desk.model = lambda x: x
    assert desk.refusal(x=_numbers(2)) == ""


def test_a_model_that_closed_its_log_is_answered_for_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback that cannot be written is no reason to leave a caller without an answer."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    log.close()
    desk = Desk(_raising(RuntimeError("told to")))
    assert desk.refusal(x=_numbers(2)) == "model.failed"


@pytest.mark.parametrize("e", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_model_that_leaves_ends_its_worker(e: BaseException) -> None:
    """What asks the process to end does; the router then answers for it. The room that was lent is taken back."""
    desk = Desk(_raising(e))
    _, packet = desk.session.begin(desk.info, None, {"x": _numbers(5000)}, 0)
    with pytest.raises(type(e)):
        desk.answer(packet)
    assert not 0 <= desk.bundle.output("y", (5000,)).data_ptr() - desk.arena.address < SIZE


def test_failures_are_made_of_anything() -> None:
    """Also while a model loads: a code of its own, and no more text than travels."""
    failure = as_failure(SystemExit("bye"), "model.load_failed", "the model does not load")
    assert (failure.code, failure.message) == ("model.load_failed", "the model does not load: SystemExit: bye")
    assert as_failure(error("bundle.invalid", "x"), "model.load_failed", "no").code == "bundle.invalid"


# --- arenas that come and go ------------------------------------------------------------------------------------------


def test_an_arena_that_is_not_there_fails_its_own_requests_only() -> None:
    """Its mapping failed, or it was forgotten: ``input.invalid``; other arenas and packets without one go on."""
    desk = Desk(lambda x: x + 1)
    other = desk.open_arena(NUMBER + 1)
    _, packet = desk.session.begin(desk.info, None, {"x": _numbers(5000)}, 0)
    desk.arenas.forget(NUMBER)
    (reply,) = desk.answer(packet)
    assert error_of(reply).code == "input.invalid"
    assert desk.seen == []
    assert desk.infer(x=_numbers(4))["y"].tolist() == [1, 2, 3, 4]
    (reply,) = desk.answer(wire.readdress(packet, Kind.REQUEST, 5, NUMBER + 1))
    assert wire.read_route(reply) == (Kind.RESPONSE, 5)
    assert other.size == SIZE


def test_a_batch_over_a_missing_arena_fails_in_part() -> None:
    """Those that need it fail, the others run."""
    desk = Desk(lambda x: x + 1, batch=_BATCH)
    begun = [desk.session.begin(desk.info, None, {"x": _numbers(count)}, 0) for count in (4, 5000, 5)]
    desk.arenas.clear()
    kinds = {wire.read_route(reply)[1]: wire.read_route(reply)[0] for reply in desk.answer(*(p for _, p in begun))}
    assert [kinds[pending.id] for pending, _ in begun] == [Kind.RESPONSE, Kind.ERROR, Kind.RESPONSE]


def test_an_output_for_a_missing_arena_travels_inline_if_it_can() -> None:
    """Inputs in the packet, rooms in an arena that is gone: small outputs come in the answer, large ones cannot."""
    for count, code in ((3, ""), (INLINE_BYTES, "output.too_small")):
        desk = Desk(lambda x, count=count: x.new_ones(count), outputs=[Y])
        desk.session.learn_sizes(desk.info, error("output.too_small", "", needed=[1 << 16]))
        desk.arenas.clear()
        (pending,) = desk.infer_all({"x": _numbers(3)})
        assert code_of(pending) == code


def test_a_kept_tensor_outlives_its_arena() -> None:
    """A model that kept its input can read it after the arena was forgotten: the last view unmaps it."""
    kept: list[torch.Tensor] = []
    desk = Desk(lambda x: kept.append(x) or x[:1])
    desk.infer(x=_numbers(5000))
    desk.arenas.forget(NUMBER)
    gc.collect()
    assert kept[0].tolist() == _numbers(5000).tolist()
