"""The session without any I/O: what it sends, what it holds and for how long, and what it believes."""

import gc
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bedsit.ipc import wire
from bedsit.ipc.arena import PAGE
from bedsit.ipc.door import ModelInfo
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import DTYPES, MAX_DIM
from bedsit.ipc.session import Pending, Session, deadline_after, priority_of
from bedsit.ipc.tensors import as_torch
from bedsit.ipc.wire import INLINE_BYTES, MODELS_PRIORITY, Flag, Kind, Place
from tests_support.packets import (
    Y,
    answer,
    arena_ref,
    bytes_at,
    inline_ref,
    make_info,
    make_session,
    row_of,
    some_values,
    take_apart,
)

_SIZE = 1 << 20
_INFO = make_info()
_ONE = {"x": np.zeros(1, np.float32)}
_LARGE = np.zeros(5000, np.float32)  # 20 KB: by reference, and so is the output


def _fail(session: Session, pending: Pending, code: str = "model.failed") -> None:
    """The router's final answer is an error."""
    assert session.accept(wire.pack_error(pending.id, error(code, "no"))) is pending


def _code(pending: Pending) -> str:
    """The code of its failure; empty when it is none."""
    assert pending.done
    return "" if pending.failure is None else pending.failure.code


def _refusal(session: Session, info: ModelInfo, inputs: Any) -> BedsitError:
    with pytest.raises(BedsitError) as caught:
        session.begin(info, None, inputs, 0)
    return caught.value


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_small_arrays_travel_inline_and_large_ones_by_reference() -> None:
    """Up to the limit the bytes are in the packet; above, they are in the arena, at the offset in the header."""
    session = make_session()
    values = np.arange(8, dtype=np.float32)
    _, packet = session.begin(_INFO, None, {"x": values}, 77, 2)
    sent = take_apart(packet)
    envelope = sent.envelope
    assert (envelope.model, envelope.model_version, envelope.arena, envelope.flags) == (3, 2, 7, 0)
    assert (envelope.deadline_ns, envelope.priority, envelope.tensors, envelope.regions) == (77, 2, 1, 0)
    assert sent.refs == (inline_ref((8,)),)
    assert sent.body == values.tobytes()
    for elements, place in ((INLINE_BYTES // 4, Place.INLINE), (INLINE_BYTES // 4 + 1, Place.ARENA)):
        values = np.arange(elements, dtype=np.float32)
        _, packet = session.begin(_INFO, 2, {"x": values}, 0)
        sent = take_apart(packet)
        assert sent.refs[0].place == place
        assert bytes_at(sent.refs[0], sent.body, session.arena) == values.tobytes()
        assert [room.capacity >= values.nbytes for room in sent.regions] == [True] * (place == Place.ARENA)
        assert (sent.envelope.model_version, sent.envelope.flags) == (2, Flag.PINNED)
    assert sent.refs[0].offset % PAGE == 0
    assert sent.body == b""


def test_several_small_inputs_share_the_packet_as_long_as_it_has_room() -> None:
    """Each begins on a multiple of 64; what does not fit any more goes into the arena, what follows still may fit."""
    info = make_info([(name, "float32", (-1,)) for name in "abcd"])
    session = make_session()
    arrays = {name: np.full(size, size, np.float32) for name, size in (("a", 3), ("b", 0), ("c", 2040), ("d", 5))}
    _, packet = session.begin(info, None, arrays, 0)
    sent = take_apart(packet)
    assert [ref.place for ref in sent.refs] == [Place.INLINE, Place.INLINE, Place.ARENA, Place.INLINE]
    assert [ref.offset for ref in sent.refs if ref.place == Place.INLINE] == [0, 64, 64]
    for ref, array in zip(sent.refs, arrays.values(), strict=True):
        assert bytes_at(ref, sent.body, session.arena) == array.tobytes()
    arrays["c"] = np.full(1900, 7, np.float32)
    _, packet = session.begin(info, None, arrays, 0)
    sent = take_apart(packet)
    assert [ref.offset for ref in sent.refs] == [0, 64, 64, 64 + 7616]
    for ref, array in zip(sent.refs, arrays.values(), strict=True):
        assert bytes_at(ref, sent.body, session.arena) == array.tobytes()


def test_inputs_travel_in_the_declared_order() -> None:
    """Whatever order the caller names them in."""
    info = make_info([("a", "int8", ()), ("b", "int16", ()), ("c", "int32", ())])
    session = make_session()
    given_ = {"c": np.array(3, np.int32), "a": np.array(1, np.int8), "b": np.array(2, np.int16)}
    for _ in range(2):
        _, packet = session.begin(info, None, given_, 0)
        sent = take_apart(packet)
        assert [ref.dtype for ref in sent.refs] == ["int8", "int16", "int32"]
        assert [struct.unpack_from("<" + kind, sent.body, at)[0] for kind, at in (("b", 0), ("h", 64), ("i", 128))] == [
            1,
            2,
            3,
        ]


def test_an_array_in_the_arena_is_not_copied_and_is_held() -> None:
    """The header points at the array itself, also at a slice of it; it stays alive until the final answer."""
    session = make_session()
    array = session.arena.empty(5000, "float32")
    pending, packet = session.begin(_INFO, None, {"x": array[8:]}, 0)
    (ref,) = take_apart(packet).refs
    assert session.arena.address + ref.offset == array[8:].ctypes.data
    held = session.arena.free_bytes()
    del array
    gc.collect()
    assert session.arena.free_bytes() == held
    _fail(session, pending)
    assert session.arena.free_bytes() == _SIZE


def test_small_arrays_in_the_arena_are_not_copied_either() -> None:
    """Where the bytes lie already they stay, however few they are; an empty array has no place and travels inline."""
    session = make_session()
    array = session.arena.empty(100, "float32")
    tensor = torch.from_numpy(array)
    for value, elements, skip in ((array[5:9], 4, 5), (tensor[7:8], 1, 7), (memory_of(array[3:5]), 2, 3)):
        _, packet = session.begin(_INFO, None, {"x": value}, 0)
        (ref,) = take_apart(packet).refs
        assert (ref.place, ref.shape) == (Place.ARENA, (elements,))
        assert session.arena.address + ref.offset == array.ctypes.data + 4 * skip
    _, packet = session.begin(_INFO, None, {"x": array[5:5]}, 0)
    assert take_apart(packet).refs == (inline_ref((0,)),)


def memory_of(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory through a buffer: its chain of bases does not lead to the arena."""
    return np.frombuffer(memoryview(array), array.dtype)


def test_an_array_of_another_session_is_copied() -> None:
    """An arena is one session's: what lies in another one is an ordinary array."""
    here, there = make_session(), make_session()
    array = there.arena.empty(5000, "float32")
    array[...] = 3.0
    _, packet = here.begin(_INFO, None, {"x": array}, 0)
    (ref,) = take_apart(packet).refs
    assert bytes_at(ref, b"", here.arena) == array.tobytes()


_LAYOUTS: dict[str, Callable[[NDArray[Any], Session, str], Any]] = {
    "owned": lambda v, _s, _d: v.copy(),
    "view": lambda v, _s, _d: v.copy()[...],
    "strided": lambda v, _s, _d: np.repeat(v.copy(), 2, axis=-1)[..., ::2] if v.ndim else v,
    "reversed": lambda v, _s, _d: _turn(_turn(v).copy()),
    "fortran": lambda v, _s, _d: np.array(v, order="F"),
    "transposed": lambda v, _s, _d: v.T.copy().T,
    "read-only": lambda v, _s, _d: np.frombuffer(v.tobytes(), v.dtype).reshape(v.shape),
    "arena": lambda v, s, d: _into_arena(v, s, d)[...],
    "arena slice": lambda v, s, d: _into_arena(np.concatenate([v, v]), s, d)[: len(v)] if v.ndim else v,
    "arena strided": lambda v, s, d: _into_arena(np.repeat(v, 2, axis=-1), s, d)[..., ::2] if v.ndim else v,
    "tensor": lambda v, _s, d: as_torch(v.copy(), d),
    "tensor strided": lambda v, _s, d: as_torch(np.repeat(v, 2, axis=-1), d)[..., ::2] if v.ndim else v,
    "tensor in arena": lambda v, s, d: as_torch(_into_arena(v, s, d), d),
}


def _turn(values: NDArray[Any]) -> NDArray[Any]:
    """The same array run through backwards."""
    return values[(slice(None, None, -1),) * values.ndim] if values.ndim else values


def _into_arena(values: NDArray[Any], session: Session, dtype: str) -> NDArray[Any]:
    array = session.arena.empty(values.shape, dtype)
    array[...] = values
    return array


_SHAPES = st.sampled_from([(), (0,), (1,), (5,), (700,), (3000,), (2, 3), (40, 50), (0, 4), (2, 3, 4), (20, 20, 10)])
_CALL = st.tuples(_SHAPES, st.sampled_from(sorted(_LAYOUTS)), st.integers(0, 50))


def _meaning(session: Session, packet: bytes, values: list[NDArray[Any]]) -> Any:
    """What a packet says, but for its id and deadline, and for where in the arena it found room."""
    sent = take_apart(packet)
    contents = [bytes_at(ref, sent.body, session.arena) for ref in sent.refs]
    assert contents == [np.ascontiguousarray(value).tobytes() for value in values]
    places = [ref._replace(offset=-1 if ref.place == Place.ARENA else ref.offset) for ref in sent.refs]
    capacities = [room.capacity for room in sent.regions]
    return sent.envelope._replace(id=0, deadline_ns=0), places, capacities, sent.body


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.lists(st.tuples(_CALL, _CALL), min_size=1, max_size=5))
def test_a_plan_changes_nothing_of_what_is_sent(first: str, second: str, calls: Any) -> None:
    """With a plan of before, with a new one and without any: equal packets, but for id and deadline.

    One session is called with inputs whose shapes, memory layouts and places change from call to call.
    """
    session = make_session(1 << 22)
    for (shape_a, how_a, start_a), (shape_b, how_b, start_b) in calls:
        info = make_info([("a", first, (-1,) * len(shape_a)), ("b", second, (-1,) * len(shape_b))], [Y])
        # One model takes tensors of one rank: other ranks are other models.
        info = info._replace(number=len(shape_a), version=len(shape_b))
        values = [some_values(first, shape_a, start_a), some_values(second, shape_b, start_b)]
        inputs = {
            "a": _LAYOUTS[how_a](values[0], session, first),
            "b": _LAYOUTS[how_b](values[1], session, second),
        }
        meant = []
        for clear in (False, True, False):
            if clear:
                session._plans.clear()
            pending, packet = session.begin(info, None, inputs, len(meant))
            meant.append(_meaning(session, packet, values))
            _fail(session, pending)
        assert meant[0] == meant[1] == meant[2]


def test_packets_of_equal_calls_differ_in_id_and_deadline_only() -> None:
    """Byte for byte, where nothing has to be reserved."""
    session = make_session()
    inputs = {"x": np.arange(4, dtype=np.float32)}
    packets = [bytearray(session.begin(_INFO, None, inputs, deadline)[1]) for deadline in (5, 6, 7)]
    fields = [wire.read_envelope(packet) for packet in packets]
    assert [(field.id, field.deadline_ns) for field in fields] == [(1, 5), (2, 6), (3, 7)]
    for packet in packets:
        packet[8:16] = packet[32:40] = bytes(8)
    assert packets[0] == packets[1] == packets[2]


def test_after_a_plan_other_inputs_are_checked_as_ever() -> None:
    """Another dtype, another rank or another fixed dimension is refused, also when the call before was good."""
    info = make_info([("x", "float32", (-1, 4))])
    session = make_session()
    good = np.zeros((2, 4), np.float32)
    for wrong in (good.astype(np.float64), good.astype(">f4"), good[0], np.zeros((4, 2), np.float32), good[None]):
        session.begin(info, None, {"x": good}, 0)
        assert _refusal(session, info, {"x": wrong}).code == "input.invalid"
    session.begin(info, None, {"x": good}, 0)


def test_plans_are_of_one_model_version() -> None:
    """The same arrays go to another model, or another version, by what that one declares."""
    session = make_session()
    inputs = {"x": np.zeros(8, np.float32)}
    session.begin(_INFO, None, inputs, 0)
    other = make_info(outputs=[("y", "float32", (10_000,))], version=9)
    _, packet = session.begin(other, None, inputs, 0)
    assert [room.capacity >= 40_000 for room in take_apart(packet).regions] == [True]
    stranger = make_info(inputs=[("x", "float32", (4,))], number=4)
    assert _refusal(session, stranger, inputs).code == "input.invalid"


def test_what_is_remembered_is_bounded() -> None:
    """A thousand shapes, and a thousand headers of answers, leave no more than some hundreds of them behind."""
    session = make_session()
    for elements in range(1000):
        pending, _ = session.begin(_INFO, None, {"x": np.zeros(elements, np.float32)}, 0)
        session.accept(answer(pending.id, inline_ref((elements,)), body=bytes(4 * elements)))
        assert _code(pending) == ""
        assert len(session._plans) <= 256
        assert len(session._answers) <= 256
    assert len(session._plans) > 100
    assert len(session._answers) > 100


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "'x' is missing"),
        ({"x": np.zeros(1, np.float32), "w": 1}, "no input 'w'"),
        ({"w": np.zeros(1, np.float32)}, "no input 'w'"),
        ({"x": np.zeros(1)}, "float64[1]"),
        ({"x": np.zeros((1, 1), np.float32)}, "float32[1, 1]"),
        ({"x": np.float32(1)}, "float32"),
        ({"x": [1.0]}, "a list"),
        ({"x": None}, "'x' is missing"),
        ({"x": np.zeros(1, ">f4")}, "byte order"),
        ({"x": np.zeros(1, "O")}, "object"),
        ({"x": np.zeros(1, np.uint64)}, "uint64"),
        ({"x": torch.ones(3, dtype=torch.float64)}, "float64[3]"),
        ({"x": torch.ones(3, device="meta")}, "meta"),
    ],
)
def test_a_wrong_input_is_refused_before_anything_is_sent(inputs: Any, text: str) -> None:
    """Each mistake is ``input.invalid``, says what was given, and reserves nothing; twice as well as once."""
    session = make_session()
    for _ in range(2):
        failure = _refusal(session, _INFO, inputs)
        assert failure.code == "input.invalid"
        assert text in failure.message
    assert session.in_flight() == 0
    assert session.arena.free_bytes() == _SIZE


def test_a_full_arena_refuses_the_request_and_frees_what_it_had_reserved() -> None:
    """Input reserved, no room for the output: ``arena.full``, and the input's room is back."""
    session = make_session(12 * PAGE)
    failure = _refusal(session, _INFO, {"x": np.zeros(8 * 1024, np.float32)})
    assert failure.code == "arena.full"
    failure.__traceback__ = None
    gc.collect()
    assert session.arena.free_bytes() == session.arena.size
    assert session.in_flight() == 0


def test_outputs_are_guessed_from_the_inputs() -> None:
    """A free dimension of an output is expected to be as long as the inputs' dimension at the same place."""
    info = make_info([("x", "float32", (-1, 64)), ("w", "float32", (-1,))], [("y", "float32", (-1, 1000))])
    inputs = {"x": np.zeros((5, 64), np.float32), "w": np.zeros(3, np.float32)}
    _, packet = make_session().begin(info, None, inputs, 0)
    (region,) = take_apart(packet).regions
    assert 5 * 1000 * 4 <= region.capacity < 5 * 1000 * 4 + PAGE


def test_outputs_get_rooms_once_they_are_too_large_together() -> None:
    """As long as all of them fit into an answer none is reserved; then each gets a room of its own."""
    info = make_info(outputs=[(name, "float32", (-1,)) for name in "yz"])
    session = make_session()
    for elements, rooms in ((1, 0), (1024, 0), (1025, 2), (5000, 2)):
        _, packet = session.begin(info, None, {"x": np.zeros(elements, np.float32)}, 0)
        regions = take_apart(packet).regions
        assert len(regions) == rooms
        assert all(room.capacity >= 4 * elements for room in regions)
        assert len({room.offset for room in regions}) == rooms


def test_rows_are_told_where_requests_are_batched() -> None:
    """The first dimension of the first input, and 0 for a model without [batch]."""
    batched = make_info(number=4, batch={"max_rows": 8})
    session = make_session()
    for rows in (0, 1, 7, 5000):
        pending, packet = session.begin(batched, None, {"x": np.empty(rows, np.float32)}, 0)
        assert take_apart(packet).envelope.rows == rows
        _fail(session, pending)
    _, packet = session.begin(_INFO, None, {"x": np.zeros(7, np.float32)}, 0)
    assert take_apart(packet).envelope.rows == 0


def test_more_rows_than_an_envelope_can_say_are_too_many_all_the_same() -> None:
    """An array without an element may claim any number of rows: that is no error of ours."""
    info = make_info([("x", "float32", (-1, 0))], [("y", "float32", (-1, 0))], batch={"max_rows": 8})
    session = make_session()
    for rows in (1 << 32, 1 << 38):
        _, packet = session.begin(info, None, {"x": np.empty((rows, 0), np.float32)}, 0)
        assert take_apart(packet).envelope.rows == 2**32 - 1


_FORMS = {
    "plain": DTYPES,
    "strided": DTYPES,
    "transposed": DTYPES,
    "zero": DTYPES,
    "scalar": DTYPES,
    "expanded": DTYPES,
    "large": DTYPES,
    "grad": [d for d in DTYPES if getattr(torch, d).is_floating_point or getattr(torch, d).is_complex],
    "conj": [d for d in DTYPES if getattr(torch, d).is_complex],
    "neg": [d for d in DTYPES if getattr(torch, d).is_complex],
}


@pytest.mark.parametrize(("form", "dtype"), [(form, dtype) for form, dtypes in _FORMS.items() for dtype in dtypes])
def test_tensors_of_every_dtype_and_form_travel_by_their_values(form: str, dtype: str) -> None:
    """What a tensor shows is sent, however it lies in memory, with a gradient or without, conjugated lazily or not."""
    kind = getattr(torch, dtype)
    base = (torch.arange(12) % 2).to(kind).reshape(3, 4)
    forms: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: base,
        "strided": lambda: base[:, ::2],
        "transposed": lambda: base.T,
        "zero": lambda: base[:, :0],
        "scalar": lambda: base[0, 1],
        "grad": lambda: base.clone().requires_grad_(),
        "conj": lambda: torch.conj(base + 1j),
        "neg": lambda: torch.conj(base + 1j).imag,
        "expanded": lambda: base[:, 1:2].expand(3, 4),
        "large": lambda: base.repeat(50, 50),
    }
    value = forms[form]()
    name = str(value.dtype).removeprefix("torch.")
    info = make_info([("x", name, (-1,) * value.dim())])
    session = make_session(1 << 22)
    plain = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    expected = plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    for _ in range(2):
        _, packet = session.begin(info, None, {"x": value}, 0)
        sent = take_apart(packet)
        (ref,) = sent.refs
        assert (ref.dtype, ref.shape) == (name, tuple(value.shape))
        assert bytes_at(ref, sent.body, session.arena) == expected


def test_bfloat16_travels_by_its_bits() -> None:
    """Tensors by what they are made of, and arrays of the bits as they are."""
    session = make_session()
    info = make_info([("x", "bfloat16", (-1,))])
    for value in (torch.tensor([1.0, -2.0], dtype=torch.bfloat16), np.array([0x3F80, 0xC000], np.uint16)):
        _, packet = session.begin(info, None, {"x": value}, 0)
        sent = take_apart(packet)
        assert sent.refs[0].dtype == "bfloat16"
        assert struct.unpack_from("<2H", sent.body) == (0x3F80, 0xC000)


# --- what comes back --------------------------------------------------------------------------------------------------


def test_outputs_by_name_in_the_packet_and_in_the_arena() -> None:
    """Small ones are arrays of their own that may be written to, large ones views of the room that was reserved."""
    info = make_info(outputs=[("y", "float32", (-1,)), ("z", "int64", ())])
    session = make_session()
    pending, _ = session.begin(info, None, _ONE, 0)
    body = np.arange(3, dtype=np.float32).tobytes() + bytes(52) + np.int64(-5).tobytes()
    assert session.accept(answer(pending.id, inline_ref((3,)), inline_ref((), 64, "int64"), body=body)) is pending
    result = pending.take()
    assert list(result) == ["y", "z"]
    assert (result["y"].tolist(), int(result["z"])) == ([0, 1, 2], -5)
    result["y"][0] = 7.0
    assert result["y"].tolist() == [7, 1, 2]
    pending, packet = session.begin(info, None, {"x": _LARGE}, 0)
    y, z = take_apart(packet).regions
    session.accept(answer(pending.id, arena_ref((5000,), y.offset), arena_ref((), z.offset, "int64")))
    result = pending.take()
    assert result["y"].ctypes.data == session.arena.address + y.offset
    assert result["z"].ctypes.data == session.arena.address + z.offset
    assert result["y"].flags.writeable


def test_inline_outputs_of_one_answer_are_independent_of_the_packet() -> None:
    """What the caller writes into a result changes neither the packet nor the next answer with the same header."""
    session = make_session()
    body = np.ones(4, np.float32).tobytes()
    results = []
    for _ in range(2):
        pending, _ = session.begin(_INFO, None, _ONE, 0)
        session.accept(answer(pending.id, inline_ref((4,)), body=body))
        results.append(pending.take())
        results[0]["y"][...] = 9.0
    assert results[1]["y"].tolist() == [1, 1, 1, 1]


def test_memory_is_free_again_after_the_answer_and_the_last_view_in_either_order() -> None:
    """An output in the arena keeps its region while a view of it lives, and not longer."""
    session = make_session()
    pending, packet = session.begin(_INFO, None, {"x": _LARGE}, 0)
    (region,) = take_apart(packet).regions
    finished = session.accept(answer(pending.id, arena_ref((4,), region.offset)))
    assert finished is pending
    result = pending.take()
    del pending, finished
    tail = result["y"][3:]
    del result
    gc.collect()
    assert session.arena.free_bytes() == _SIZE - region.capacity
    del tail
    gc.collect()
    assert session.arena.free_bytes() == _SIZE


def test_a_withdrawn_request_keeps_its_memory_until_the_final_answer() -> None:
    """Not waiting any more frees nothing; the late answer does, whoever still holds the request."""
    session = make_session()
    pending, packet = session.begin(_INFO, None, {"x": _LARGE}, 0)
    (region,) = take_apart(packet).regions
    cancel = wire.read_envelope(session.withdraw(pending))
    assert (cancel.kind, cancel.id) == (Kind.CANCEL, pending.id)
    ident = pending.id
    used = session.arena.free_bytes()
    held = pending
    del pending
    gc.collect()
    assert session.arena.free_bytes() == used < _SIZE
    assert session.in_flight() == 1
    session.accept(answer(ident, arena_ref((4,), region.offset)))
    gc.collect()
    assert session.arena.free_bytes() == _SIZE
    assert session.in_flight() == 0
    with pytest.raises(BedsitError) as caught:
        held.take()
    assert caught.value.code == "request.cancelled"


def test_an_error_frees_the_memory_and_is_raised() -> None:
    """An ERROR is a final answer."""
    session = make_session()
    pending, _ = session.begin(_INFO, None, {"x": _LARGE}, 0)
    _fail(session, pending)
    with pytest.raises(BedsitError) as caught:
        pending.take()
    assert caught.value.code == "model.failed"
    assert session.arena.free_bytes() == _SIZE


def test_a_request_that_never_left_frees_its_memory_whoever_still_holds_it() -> None:
    """The traceback of the error that says so must not keep the arena."""
    session = make_session()
    pending, _ = session.begin(_INFO, None, {"x": _LARGE}, 0)
    session.forget(pending)
    assert session.arena.free_bytes() == _SIZE
    assert session.in_flight() == 0
    assert session.accept(answer(pending.id)) is None


def test_answers_to_nobody_are_ignored() -> None:
    """A second answer, an answer to an unknown request and the router's complaint under id 0 finish nothing."""
    session = make_session()
    pending, _ = session.begin(_INFO, None, _ONE, 0)
    ref = inline_ref((0,))
    assert session.accept(answer(99, ref)) is None
    assert session.accept(wire.pack_error(0, error("internal", "x"))) is None
    assert session.accept(answer(pending.id, ref)) is pending
    assert session.accept(answer(pending.id, ref)) is None
    assert pending.take()["y"].shape == (0,)


def test_questions_to_the_router_are_answered_by_maps() -> None:
    """ASK and TOLD have the same id; an error is raised, and any other packet is no answer to a question."""
    session = make_session()
    for reply, code in (
        (lambda i: wire.pack_map(Kind.TOLD, i, {"models": []}), ""),
        (lambda i: wire.pack_error(i, error("model.not_found", "no")), "model.not_found"),
        (lambda i: answer(i, inline_ref((0,))), "wire.malformed"),
        (lambda i: wire.pack_packet(Kind.TOLD, i, b"\xc1"), "wire.malformed"),
        (lambda i: wire.pack_packet(Kind.CANCEL, i), "wire.malformed"),
    ):
        pending, packet = session.ask({"op": "models"})
        envelope = wire.read_envelope(packet)
        assert (envelope.kind, wire.read_map(packet, envelope)) == (Kind.ASK, {"op": "models"})
        assert session.accept(reply(pending.id)) is pending
        assert _code(pending) == code
    pending, _ = session.begin(_INFO, None, _ONE, 0)
    session.accept(wire.pack_map(Kind.TOLD, pending.id, {}))
    assert _code(pending) == "wire.malformed"


@pytest.mark.parametrize(
    ("refs", "body"),
    [
        ([], b""),
        ([inline_ref((1,)), inline_ref((1,), 64)], bytes(128)),
        ([inline_ref((1,), dtype="float64")], bytes(8)),
        ([inline_ref((1,), dtype="int32")], bytes(4)),
        ([inline_ref((1, 1))], bytes(4)),
        ([inline_ref(())], bytes(4)),
        ([inline_ref((3,))], bytes(12)),
        ([inline_ref((2, 1))], bytes(8)),
        ([inline_ref((2,), 4)], bytes(8)),
        ([inline_ref((2,), 64)], bytes(8)),
        ([inline_ref((2,), MAX_DIM)], bytes(8)),
        ([inline_ref((2,))], b""),
        ([inline_ref((2,))], bytes(7)),
        ([arena_ref((2,), 0)], b""),
        ([arena_ref((2,), MAX_DIM)], b""),
    ],
    ids=range(15),
)
def test_answers_that_lie_are_invalid(refs: Any, body: bytes) -> None:
    """In number, dtype, rank, fixed dimension, offset or place: ``output.invalid``, and the next answer is taken."""
    info = make_info(outputs=[("y", "float32", (2,))])
    session = make_session()
    for _ in range(2):
        pending, _ = session.begin(info, None, _ONE, 0)
        session.accept(answer(pending.id, *refs, body=body))
        assert _code(pending) == "output.invalid"
    pending, _ = session.begin(info, None, _ONE, 0)
    session.accept(answer(pending.id, inline_ref((2,)), body=bytes(8)))
    assert _code(pending) == ""


def test_an_answer_may_point_only_at_its_own_rooms_and_inputs() -> None:
    """Another output's region, another request's, the middle, beyond the end, memory of the caller's: all refused."""
    info = make_info(outputs=[(name, "float32", (-1,)) for name in "yz"])
    session = make_session()
    secret = session.arena.empty(5000, "float32")
    secret[...] = 42.0
    other, packet = session.begin(info, None, {"x": _LARGE}, 0)
    foreign = take_apart(packet)

    def outcome(move: Any, elements: int = 4) -> str:
        pending, packet = session.begin(info, None, {"x": _LARGE}, 0)
        (x,), (y, z) = take_apart(packet)[1:3]
        refs = arena_ref((elements,), move(x.offset, y.offset, z.offset)), arena_ref((4,), z.offset)
        session.accept(answer(pending.id, *refs))
        return _code(pending)

    assert outcome(lambda x, y, z: y) == ""
    assert outcome(lambda x, y, z: y, 5120) == ""  # the whole capacity: five pages
    assert outcome(lambda x, y, z: y, 5121) == "output.invalid"
    assert outcome(lambda x, y, z: z) == "output.invalid"
    assert outcome(lambda x, y, z: y + 64) == "output.invalid"
    assert outcome(lambda x, y, z: secret.ctypes.data - session.arena.address) == "output.invalid"
    assert outcome(lambda x, y, z: foreign.refs[0].offset) == "output.invalid"
    assert outcome(lambda x, y, z: foreign.regions[0].offset) == "output.invalid"
    assert outcome(lambda x, y, z: _SIZE) == "output.invalid"
    assert outcome(lambda x, y, z: _SIZE - 4) == "output.invalid"
    assert outcome(lambda x, y, z: x) == ""
    _fail(session, other)


def test_an_output_may_be_a_view_of_an_input_and_lies_all_inside_of_it() -> None:
    """Not a byte before or behind the input that was named, though the span around it is larger."""
    session = make_session()
    array = session.arena.empty(3000, "float32")
    array[...] = np.arange(3000)
    for start, elements, code in (
        (1000, 1000, ""),
        (1000, 1, ""),
        (1999, 1, ""),
        (1500, 0, ""),
        (999, 1, "output.invalid"),
        (999, 1001, "output.invalid"),
        (2000, 1, "output.invalid"),
        (1000, 1001, "output.invalid"),
        (0, 1, "output.invalid"),
        (1000.25, 1, "output.invalid"),
    ):
        pending, packet = session.begin(_INFO, None, {"x": array[1000:2000]}, 0)
        at = take_apart(packet).refs[0].offset + int(4 * (start - 1000))
        session.accept(answer(pending.id, arena_ref((elements,), at)))
        assert _code(pending) == code, (start, elements)
        if not code:
            y = pending.take()["y"]
            assert y.tolist() == list(range(int(start), int(start) + elements))
            assert not elements or np.shares_memory(y, array)
    assert session.arena.find(array) is not None


def test_an_output_that_is_a_view_of_a_copied_input_keeps_that_copy() -> None:
    """The session's own copy of an input is free again once the output that lies in it is gone."""
    session = make_session()
    pending, packet = session.begin(_INFO, None, {"x": np.arange(5000, dtype=np.float32)}, 0)
    sent = take_apart(packet)
    session.accept(answer(pending.id, arena_ref((10,), sent.refs[0].offset + 400)))
    y = pending.take()["y"]
    del pending
    gc.collect()
    assert session.arena.free_bytes() == _SIZE - 5 * PAGE
    assert y.tolist() == list(range(100, 110))
    del y
    gc.collect()
    assert session.arena.free_bytes() == _SIZE


def test_a_header_that_was_good_before_is_no_pass_for_the_next_request() -> None:
    """The offsets of an answer are held against the memory of its own request, each time."""
    session = make_session()
    first, packet = session.begin(_INFO, None, {"x": _LARGE}, 0)
    ref = arena_ref((4,), take_apart(packet).regions[0].offset)
    second, _ = session.begin(_INFO, None, {"x": _LARGE}, 0)
    small, _ = session.begin(_INFO, None, _ONE, 0)
    session.accept(answer(first.id, ref))
    assert _code(first) == ""
    for pending in (second, small):
        session.accept(answer(pending.id, ref))
        assert _code(pending) == "output.invalid"
    pendings = [session.begin(_INFO, None, _ONE, 0)[0] for _ in range(2)]
    session.accept(answer(pendings[0].id, inline_ref((4,)), body=bytes(16)))
    session.accept(answer(pendings[1].id, inline_ref((4,)), body=bytes(15)))
    assert [_code(pending) for pending in pendings] == ["", "output.invalid"]
    pending, _ = session.begin(_INFO, None, _ONE, 0)
    lie = wire.pack_packet(Kind.RESPONSE, pending.id, row_of(inline_ref((4,))), bytes(16), tensors=2)
    session.accept(lie)
    assert _code(pending) == "wire.malformed"
    other = make_info(outputs=[("y", "float32", (-1, -1))], version=9)
    pending, _ = session.begin(other, None, _ONE, 0)
    session.accept(answer(pending.id, inline_ref((4,)), body=bytes(16)))
    assert _code(pending) == "output.invalid"


def test_an_inline_answer_may_point_only_into_its_packet() -> None:
    """Offsets and lengths beyond the packet are refused; its last bytes are not."""
    session = make_session()
    for offset, elements, code in (
        (0, 4, ""),
        (48, 4, ""),
        (64, 0, ""),
        (1, 4, ""),
        (52, 4, "output.invalid"),
        (0, 17, "output.invalid"),
        (65, 0, "output.invalid"),
    ):
        pending, _ = session.begin(_INFO, None, _ONE, 0)
        session.accept(answer(pending.id, inline_ref((elements,), offset), body=bytes(64)))
        assert _code(pending) == code, (offset, elements)


_DIMS = st.integers(0, 3) | st.sampled_from([5000, 5120, 5121, 1 << 20, 1 << 40])
_ANSWER_ROW = st.tuples(
    st.integers(0, len(DTYPES)),
    st.lists(_DIMS, max_size=4),
    st.integers(0, 2),
    st.sampled_from([0, 1, 4, 60, 64, 4096, 8192, 20480, 40960, 1 << 20, 1 << 40, 2**64 - 1]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_ANSWER_ROW, max_size=3), st.booleans(), st.booleans(), st.binary(max_size=80), st.integers(-1, 1))
def test_no_answer_raises_anything_but_our_error(
    rows: list[Any],
    large: bool,  # noqa: FBT001
    as_tensors: bool,  # noqa: FBT001
    body: bytes,
    surplus: int,
) -> None:
    """A hostile worker's answer always finishes its request: with arrays inside of its memory, or a BedsitError."""
    session = make_session(1 << 17, "torch" if as_tensors else "numpy")
    pending, packet = session.begin(_INFO, None, {"x": _LARGE if large else _LARGE[:1]}, 0)
    sent = take_apart(packet)
    header = b"".join(
        struct.pack(f"<BBB5xQ{len(shape)}Q", dtype, place, len(shape), offset, *shape)
        for dtype, shape, place, offset in rows
    )
    lie = wire.pack_packet(Kind.RESPONSE, pending.id, header, body, tensors=max(0, len(rows) + surplus))
    assert session.accept(lie) is pending
    if _code(pending):
        assert _code(pending) in ("wire.malformed", "output.invalid")
        return
    own = [(room.offset, room.offset + room.capacity) for room in sent.regions]
    own += [(ref.offset, ref.offset + ref.nbytes) for ref in sent.refs if ref.place == Place.ARENA]
    for value in pending.take().values():
        array = value.numpy() if as_tensors else value
        assert array.nbytes <= max(len(body), session.arena.size)
        at = array.ctypes.data - session.arena.address
        if array.nbytes and 0 <= at < session.arena.size:
            assert any(start <= at and at + array.nbytes <= end for start, end in own)
        array.sum()


@settings(deadline=None)
@given(st.integers(0, 255), st.binary(max_size=60), st.booleans())
def test_no_packet_leaves_a_request_unfinished(kind: int, header: bytes, asked: bool) -> None:  # noqa: FBT001
    """A packet of any kind with any header under a request's id is its final answer."""
    session = make_session(1 << 16)
    pending = session.ask({"op": "models"})[0] if asked else session.begin(_INFO, None, _ONE, 0)[0]
    packet = bytearray(wire.pack_packet(Kind.RESPONSE, pending.id, header))
    packet[3] = kind
    assert session.accept(bytes(packet)) is pending
    assert pending.done
    assert session.in_flight() == 0


def test_asking_for_an_answer_that_is_not_there_is_a_bug() -> None:
    """It is said, instead of giving None to a caller."""
    pending, _ = make_session().begin(_INFO, None, _ONE, 0)
    with pytest.raises(BedsitError) as caught:
        pending.take()
    assert caught.value.code == "internal"


def test_the_end_of_the_router_ends_every_request() -> None:
    """All requests in flight fail with the same error, in the order in which they began; each with one of its own."""
    session = make_session()
    pendings = [session.begin(_INFO, None, {"x": _LARGE}, 0)[0] for _ in range(3)]
    failure = error("router.restarted", "gone", "again", part=1)
    assert session.fail_all(failure) == pendings
    assert session.arena.free_bytes() == _SIZE
    for pending in pendings:
        with pytest.raises(BedsitError) as caught:
            pending.take()
        assert type(caught.value) is type(failure)
        assert (str(caught.value), caught.value.detail) == (str(failure), {"part": 1})
    assert len({id(pending.failure) for pending in pendings}) == 3
    assert session.in_flight() == 0


# --- tensors out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (60, 70)])
def test_results_can_be_tensors_of_every_dtype(dtype: str, shape: tuple[int, ...]) -> None:
    """With tensors="torch": of the true dtype, over the same memory, in the packet and in the arena."""
    info = make_info(outputs=[("y", dtype, (-1,) * len(shape))])
    session = make_session(tensors="torch")
    values = some_values(dtype, shape)
    expected = as_torch(values.copy(), dtype)
    session.learn_sizes(info, error("output.too_small", "", needed=[max(values.nbytes, INLINE_BYTES + 1)]))
    pending, packet = session.begin(info, None, _ONE, 0)
    (region,) = take_apart(packet).regions
    session.arena._map[region.offset : region.offset + values.nbytes] = values.tobytes()
    session.accept(answer(pending.id, arena_ref(shape, region.offset, dtype)))
    in_arena = pending.take()["y"]
    assert not values.nbytes or in_arena.data_ptr() == session.arena.address + region.offset
    tensors = [in_arena]
    if values.nbytes <= INLINE_BYTES:
        pending, _ = session.begin(info, None, _ONE, 0)
        session.accept(answer(pending.id, inline_ref(shape, 0, dtype), body=values.tobytes()))
        tensors.append(pending.take()["y"])
    for tensor in tensors:
        assert (type(tensor), tensor.dtype, tuple(tensor.shape)) == (torch.Tensor, getattr(torch, dtype), shape)
        bits = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
        assert bits.equal(expected.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0))


def test_tensors_keep_their_region() -> None:
    """A result's tensor holds its memory like an array does, and so does a view of it."""
    session = make_session(tensors="torch")
    pending, packet = session.begin(_INFO, None, {"x": _LARGE}, 0)
    (region,) = take_apart(packet).regions
    session.accept(answer(pending.id, arena_ref((5000,), region.offset)))
    tail = pending.take()["y"][4000:]
    del pending
    gc.collect()
    assert session.arena.free_bytes() == _SIZE - region.capacity
    del tail
    gc.collect()
    assert session.arena.free_bytes() == _SIZE


def test_a_tensor_of_a_result_is_an_input_without_a_copy() -> None:
    """What one model gave is passed to the next where it lies."""
    session = make_session(tensors="torch")
    pending, packet = session.begin(_INFO, None, {"x": _LARGE}, 0)
    (region,) = take_apart(packet).regions
    session.accept(answer(pending.id, arena_ref((5000,), region.offset)))
    y = pending.take()["y"]
    _, packet = session.begin(_INFO, None, {"x": y[10:]}, 0)
    assert take_apart(packet).refs == (arena_ref((4990,), region.offset + 40),)


# --- sizes, deadlines, priorities -------------------------------------------------------------------------------------


def test_sizes_are_learned_once() -> None:
    """After ``output.too_small`` the next request reserves what was said; the same news again is no news."""
    session = make_session()
    session.begin(_INFO, None, _ONE, 0)  # there is a plan with other sizes
    failure = error("output.too_small", "more", needed=[300_000])
    assert session.learn_sizes(_INFO, failure)
    assert not session.learn_sizes(_INFO, failure)
    assert not session.learn_sizes(_INFO, error("output.too_small", "less", needed=[10]))
    for _ in range(2):
        pending, packet = session.begin(_INFO, None, _ONE, 0)
        (region,) = take_apart(packet).regions
        assert region.capacity >= 300_000
        _fail(session, pending)
    other = _INFO._replace(version=9)
    _, packet = session.begin(other, None, _ONE, 0)
    assert take_apart(packet).regions == ()


def test_sizes_of_several_outputs_are_learned_in_their_order() -> None:
    """Each output's largest need is kept, whichever answer said it."""
    info = make_info(outputs=[(name, "float32", (-1,)) for name in "yz"])
    session = make_session()
    assert session.learn_sizes(info, error("output.too_small", "", needed=[20_000, 0]))
    assert session.learn_sizes(info, error("output.too_small", "", needed=[8, 90_000]))
    _, packet = session.begin(info, None, _ONE, 0)
    y, z = take_apart(packet).regions
    assert 20_000 <= y.capacity < 30_000
    assert 90_000 <= z.capacity < 110_000


@pytest.mark.parametrize(
    "needed", [None, 7, [], "9", {"y": 9}, ["1"], [-1], [True], [1.5], [1, 1], [None], [[1]], (9,)], ids=range(13)
)
def test_sizes_that_say_nothing_are_not_tried_again(needed: Any) -> None:
    """A worker that answers nonsense does not make the client repeat the request."""
    session = make_session()
    assert not session.learn_sizes(_INFO, error("output.too_small", "more", needed=needed))
    assert not session.learn_sizes(_INFO, error("output.too_small", "more"))
    session.begin(_INFO, None, _ONE, 0)


def test_enormous_sizes_fill_the_arena_and_nothing_else() -> None:
    """A worker that needs more than there is ends its own model's requests."""
    session = make_session()
    assert session.learn_sizes(_INFO, error("output.too_small", "more", needed=[2**64 - 1]))
    assert _refusal(session, _INFO, _ONE).code == "arena.full"
    session.begin(_INFO._replace(number=4), None, _ONE, 0)


def test_deadlines_are_on_the_monotonic_clock_and_in_range() -> None:
    """None means never; very long ones are cut to what fits the wire; less than nothing and NaN are refused."""
    assert deadline_after(None) == 0
    now = time.monotonic_ns()
    assert now + 2 * 10**9 <= deadline_after(2)
    assert deadline_after(0) >= now
    for forever in (float("inf"), 1e300, 10**30):
        assert now < deadline_after(forever) < 2**63
    for wrong in (float("nan"), -1, -1e300):
        with pytest.raises(BedsitError) as caught:
            deadline_after(wrong)
        assert caught.value.code == "request.invalid"


def test_priorities_are_numbers_on_the_wire() -> None:
    """Low, normal and high; None leaves it to the model; another name is ``request.invalid``."""
    assert [priority_of(name) for name in ("low", "normal", "high", None)] == [0, 1, 2, MODELS_PRIORITY]
    for wrong in ("urgent", 7, [], ""):
        with pytest.raises(BedsitError) as caught:
            priority_of(wrong)  # type: ignore[arg-type]
        assert caught.value.code == "request.invalid"
    assert take_apart(make_session().begin(_INFO, None, _ONE, 0)[1]).envelope.priority == MODELS_PRIORITY


def test_a_version_is_pinned_only_where_the_caller_named_it() -> None:
    """Without one the packet says which version the client believes in, and that any other will do."""
    session = make_session()
    for version, flags in ((None, 0), (0, 0), (2, Flag.PINNED)):
        envelope = take_apart(session.begin(_INFO, version, _ONE, 0)[1]).envelope
        assert (envelope.model_version, envelope.flags) == (2, flags)


def test_the_names_of_the_model_are_not_on_the_wire() -> None:
    """Tensors are known by their place in the manifest; a long name costs no packet anything."""
    names = [f"{'n' * 60}{index}" for index in range(3)]
    info = make_info([(name, "float32", (-1,)) for name in names])
    _, packet = make_session().begin(info, None, dict.fromkeys(names, _ONE["x"]), 0)
    assert b"nnn" not in packet
    assert len(packet) == 320
