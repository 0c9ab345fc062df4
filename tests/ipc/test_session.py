"""The session without any I/O: what it holds, for how long, and what it believes."""

import gc
import os
import struct
import time
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedsit.ipc import wire
from bedsit.ipc.arena import Arena
from bedsit.ipc.door import ModelInfo
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import TensorSpec, parse_manifest
from bedsit.ipc.session import Session, deadline_after
from bedsit.ipc.wire import INLINE_BYTES, Kind, Place, TensorRef

_SIZE = 1 << 20


def _session(size: int = _SIZE) -> Session:
    fd = os.memfd_create("test-session", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return Session(Arena(fd, size, 7))


def _info(inputs: Any = None, outputs: Any = None) -> ModelInfo:
    table = {
        "name": "m",
        "runner": "python",
        "entry": "m:b",
        "inputs": inputs or [{"name": "x", "dtype": "float32", "shape": [-1]}],
        "outputs": outputs or [{"name": "y", "dtype": "float32", "shape": [-1]}],
    }
    return ModelInfo(3, 2, parse_manifest(table))


_INFO = _info()
_LARGE = np.zeros(5000, np.float32)  # 20 KB: by reference, and so is the output


def _answer(ident: int, *refs: TensorRef, body: bytes = b"") -> bytes:
    return wire.pack_packet(Kind.RESPONSE, ident, wire.encode_response(refs), body)


def _header(packet: bytes) -> tuple[list[TensorRef], list[wire.Region]]:
    return wire.decode_request(packet, wire.read_envelope(packet))


def test_small_arrays_travel_inline_and_large_ones_by_reference() -> None:
    """Up to the limit the bytes are in the packet; above, they are in the arena, at the offset in the header."""
    session = _session()
    _, packet = session.begin(_INFO, None, {"x": np.arange(8, dtype=np.float32)}, 0)
    envelope = wire.read_envelope(packet)
    assert (envelope.model, envelope.model_version, envelope.arena) == (3, 0, 7)
    (ref,), regions = _header(packet)
    assert (ref.place, regions) == (Place.INLINE, [])
    assert bytes(wire.body_of(packet, envelope))[:32] == np.arange(8, dtype=np.float32).tobytes()
    _, packet = session.begin(_INFO, 2, {"x": np.arange(INLINE_BYTES // 4 + 1, dtype=np.float32)}, 0)
    (ref,), (region,) = _header(packet)
    assert ref.place == Place.ARENA
    assert region.capacity >= INLINE_BYTES + 4
    start = session.arena.address + ref.offset
    assert start % 4096 == 0
    assert wire.read_envelope(packet).model_version == 2


def test_an_array_in_the_arena_is_not_copied_and_is_held() -> None:
    """The header points at the array itself, also at a slice of it; it stays alive until the final answer."""
    session = _session()
    array = session.arena.empty(5000, "float32")
    pending, packet = session.begin(_INFO, None, {"x": array[8:]}, 0)
    (ref,), _ = _header(packet)
    assert session.arena.address + ref.offset == array[8:].ctypes.data
    held = session.arena.free_bytes()
    del array
    gc.collect()
    assert session.arena.free_bytes() == held
    session.accept(_answer(pending.id))
    assert session.arena.free_bytes() == _SIZE


@pytest.mark.parametrize("view", [lambda a: a[::2], lambda a: a.reshape(2, -1).T.reshape(-1)[::3], lambda a: a[::-1]])
def test_a_view_with_gaps_is_sent_as_what_it_shows(view: Any) -> None:
    """Strided and reversed views are copied in the order of their elements."""
    session = _session()
    values = view(np.arange(40_000, dtype=np.float32))
    _, packet = session.begin(_INFO, None, {"x": values}, 0)
    (ref,), _ = _header(packet)
    span = session._pending[1].kept[0]
    assert (span.view("float32", ref.shape) == values).all()


def test_memory_is_free_again_after_the_answer_and_the_last_view_in_either_order() -> None:
    """An output in the arena keeps its region while a view of it lives, and not longer."""
    session = _session()
    pending, packet = session.begin(_INFO, None, {"x": _LARGE}, 0)
    _, (region,) = _header(packet)
    finished = session.accept(_answer(pending.id, TensorRef("y", "float32", (4,), Place.ARENA, region.offset, 16)))
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
    session = _session()
    pending, packet = session.begin(_INFO, None, {"x": _LARGE}, 0)
    _, (region,) = _header(packet)
    cancel = wire.read_envelope(session.withdraw(pending))
    assert (cancel.kind, cancel.id) == (Kind.CANCEL, pending.id)
    ident = pending.id
    used = session.arena.free_bytes()
    held = pending
    del pending
    gc.collect()
    assert session.arena.free_bytes() == used < _SIZE
    assert session.in_flight() == 1
    session.accept(_answer(ident, TensorRef("y", "float32", (4,), Place.ARENA, region.offset, 16)))
    gc.collect()
    assert session.arena.free_bytes() == _SIZE
    assert session.in_flight() == 0
    with pytest.raises(BedsitError) as caught:
        held.take()
    assert caught.value.code == "request.cancelled"


def test_an_error_frees_the_memory_and_is_raised() -> None:
    """An ERROR is a final answer."""
    session = _session()
    pending, _ = session.begin(_INFO, None, {"x": _LARGE}, 0)
    session.accept(wire.pack_packet(Kind.ERROR, pending.id, wire.encode_error(error("model.failed", "no"))))
    with pytest.raises(BedsitError) as caught:
        pending.take()
    assert caught.value.code == "model.failed"
    assert session.arena.free_bytes() == _SIZE


def test_answers_to_nobody_are_ignored() -> None:
    """A second answer, an answer to an unknown request and the router's complaint under id 0 finish nothing."""
    session = _session()
    pending, _ = session.begin(_INFO, None, {"x": np.zeros(1, np.float32)}, 0)
    ref = TensorRef("y", "float32", (0,), Place.INLINE, 0, 0)
    assert session.accept(_answer(99, ref)) is None
    assert session.accept(wire.pack_packet(Kind.ERROR, 0, wire.encode_error(error("internal", "x")))) is None
    assert session.accept(_answer(pending.id, ref)) is pending
    assert session.accept(_answer(pending.id)) is None


def test_an_answer_may_point_only_at_the_start_of_its_own_region() -> None:
    """Another output's region, the input, the middle, beyond the end, an output nobody declared: all refused."""
    info = _info(outputs=[{"name": n, "dtype": "float32", "shape": [-1]} for n in ("y", "z")])
    session = _session()
    secret = session.arena.empty(5000, "float32")
    secret[...] = 42.0

    def outcome(name: str, move: Any, elements: int = 4) -> str:
        pending, packet = session.begin(info, None, {"x": _LARGE}, 0)
        refs, (y, z) = _header(packet)
        offset = move(refs[0].offset, y, z)
        session.accept(_answer(pending.id, TensorRef(name, "float32", (elements,), Place.ARENA, offset, 0)))
        return "" if pending.failure is None else pending.failure.code

    assert outcome("y", lambda x, y, z: y.offset) == ""
    assert outcome("y", lambda x, y, z: y.offset, 5120) == ""  # the whole capacity: five pages
    assert outcome("y", lambda x, y, z: y.offset, 5121) == "output.invalid"
    assert outcome("y", lambda x, y, z: z.offset) == "output.invalid"
    assert outcome("y", lambda x, y, z: x) == "output.invalid"
    assert outcome("y", lambda x, y, z: y.offset + 64) == "output.invalid"
    assert outcome("y", lambda x, y, z: secret.ctypes.data - session.arena.address) == "output.invalid"
    assert outcome("y", lambda x, y, z: _SIZE) == "output.invalid"
    assert outcome("w", lambda x, y, z: y.offset) == "output.invalid"


def test_an_inline_answer_may_point_only_into_its_packet() -> None:
    """Offsets and lengths beyond the packet are refused; its last bytes are not."""
    session = _session()
    for offset, elements, code in ((0, 4, ""), (48, 4, ""), (52, 4, "output.invalid"), (0, 17, "output.invalid")):
        pending, _ = session.begin(_INFO, None, {"x": np.zeros(1, np.float32)}, 0)
        ref = TensorRef("y", "float32", (elements,), Place.INLINE, offset, 0)
        session.accept(_answer(pending.id, ref, body=bytes(64)))
        assert (pending.failure.code if pending.failure else "") == code


_DIMS = st.integers(0, 3) | st.sampled_from([1 << 20, 1 << 40])
_ROW = st.tuples(
    st.sampled_from(["y", "z"]),
    st.integers(0, 9),
    st.lists(_DIMS, max_size=4),
    st.integers(0, 1),
    st.sampled_from([0, 1, 4096, 8192, 1 << 20, 1 << 40]),
).map(list)


@settings(max_examples=300, deadline=None)
@given(st.lists(_ROW, max_size=3), st.booleans(), st.binary(max_size=80))
def test_no_answer_raises_anything_but_our_error(rows: list[Any], large: bool, body: bytes) -> None:  # noqa: FBT001
    """A hostile worker's answer always finishes its request: with arrays inside of its memory, or a BedsitError."""
    session = _session(1 << 16)
    pending, _ = session.begin(_INFO, None, {"x": _LARGE if large else _LARGE[:1]}, 0)
    packet = wire.pack_packet(Kind.RESPONSE, pending.id, msgpack.packb([rows]), body)
    assert session.accept(packet) is pending
    assert pending.done
    if pending.failure is None:
        for array in pending.take().values():
            assert array.nbytes <= max(len(body), session.arena.size)
    else:
        assert pending.failure.code in ("wire.malformed", "output.invalid")


@settings(deadline=None)
@given(st.integers(0, 255), st.binary(max_size=60))
def test_no_packet_leaves_a_request_unfinished(kind: int, header: bytes) -> None:
    """A packet of any kind with any header under a request's id is its final answer."""
    session = _session(1 << 16)
    pending, _ = session.begin(_INFO, None, {"x": _LARGE[:1]}, 0)
    packet = bytearray(wire.pack_packet(Kind.RESPONSE, pending.id, header))
    packet[3] = kind
    assert session.accept(bytes(packet)) is pending
    assert pending.done


def test_sizes_are_learned_once() -> None:
    """After ``output.too_small`` the next request reserves what was said; the same news again is no news."""
    session = _session()
    failure = error("output.too_small", "more", needed={"y": 300_000, "stranger": 1 << 60})
    assert session.learn_sizes(_INFO, failure)
    assert not session.learn_sizes(_INFO, failure)
    _, packet = session.begin(_INFO, None, {"x": np.zeros(1, np.float32)}, 0)
    _, (region,) = _header(packet)
    assert region.capacity >= 300_000
    other = _INFO._replace(version=9)
    _, packet = session.begin(other, None, {"x": np.zeros(1, np.float32)}, 0)
    assert _header(packet)[1] == []


@pytest.mark.parametrize("needed", [None, 7, [], {"y": "1"}, {"y": -1}, {"y": True}, {"y": 1.5}, {}, {"stranger": 9}])
def test_sizes_that_say_nothing_are_not_tried_again(needed: Any) -> None:
    """A worker that answers nonsense does not make the client repeat the request."""
    assert not _session().learn_sizes(_INFO, error("output.too_small", "more", needed=needed))


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "'x' is missing"),
        ({"x": np.zeros(1, np.float32), "w": 1}, "no input 'w'"),
        ({"x": np.zeros(1)}, "float64[1]"),
        ({"x": np.zeros((1, 1), np.float32)}, "float32[1, 1]"),
        ({"x": np.float32(1)}, "float32"),
        ({"x": [1.0]}, "a list"),
        ({"x": None}, "a NoneType"),
        ({"x": np.zeros(1, ">f4")}, "byte order"),
        ({"x": np.zeros(1, "O")}, "object"),
    ],
)
def test_a_wrong_input_is_refused_before_anything_is_sent(inputs: Any, text: str) -> None:
    """Each mistake is ``input.invalid``, says what was given, and reserves nothing."""
    session = _session()
    with pytest.raises(BedsitError) as caught:
        session.begin(_INFO, None, inputs, 0)
    assert caught.value.code == "input.invalid"
    assert text in caught.value.message
    assert session.in_flight() == 0
    assert session.arena.free_bytes() == _SIZE


def test_a_full_arena_refuses_the_request_and_frees_what_it_had_reserved() -> None:
    """Input reserved, no room for the output: ``arena.full``, and the input's room is back."""
    session = _session(12 * 4096)
    with pytest.raises(BedsitError) as caught:
        session.begin(_INFO, None, {"x": np.zeros(8 * 1024, np.float32)}, 0)
    assert caught.value.code == "arena.full"
    caught.value.__traceback__ = None
    del caught
    gc.collect()
    assert session.arena.free_bytes() == session.arena.size
    assert session.in_flight() == 0


def test_torch_tensors_travel_as_they_are() -> None:
    """Tensors are taken like arrays; bfloat16 by its bits; a tensor with a gradient without it."""
    import torch

    session = _session()
    info = _info(inputs=[{"name": "x", "dtype": "bfloat16", "shape": [-1]}])
    _, packet = session.begin(info, None, {"x": torch.tensor([1.0, -2.0], dtype=torch.bfloat16)}, 0)
    body = bytes(wire.body_of(packet, wire.read_envelope(packet)))[:4]
    assert struct.unpack("<2H", body) == (0x3F80, 0xC000)
    bits = np.array([0x3F80], np.uint16)
    session.begin(info, None, {"x": bits}, 0)
    session.begin(_INFO, None, {"x": torch.ones(3, requires_grad=True)}, 0)
    session.begin(_INFO, None, {"x": torch.ones(6)[::2]}, 0)
    with pytest.raises(BedsitError):
        session.begin(_INFO, None, {"x": torch.ones(3, device="meta")}, 0)


def test_outputs_are_guessed_from_the_inputs() -> None:
    """A free dimension of an output is expected to be as long as the inputs' dimension at the same place."""
    info = _info(
        inputs=[_row("x", [-1, 64]), _row("w", [-1])],
        outputs=[_row("y", [-1, 1000])],
    )
    inputs = {"x": np.zeros((5, 64), np.float32), "w": np.zeros(3, np.float32)}
    _, packet = _session().begin(info, None, inputs, 0)
    _, (region,) = _header(packet)
    assert 5 * 1000 * 4 <= region.capacity < 5 * 1000 * 4 + 4096


def _row(name: str, shape: list[int]) -> dict[str, Any]:
    """A row of bedsit.toml."""
    spec = TensorSpec(name, "float32", tuple(shape))
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def test_the_end_of_the_router_ends_every_request() -> None:
    """All requests in flight fail with the same error, in the order in which they began."""
    session = _session()
    pendings = [session.begin(_INFO, None, {"x": np.zeros(1, np.float32)}, 0)[0] for _ in range(3)]
    assert session.fail_all(error("router.restarted", "gone")) == pendings
    for pending in pendings:
        with pytest.raises(BedsitError):
            pending.take()
    assert session.in_flight() == 0


def test_deadlines_are_on_the_monotonic_clock_and_in_range() -> None:
    """None means never; very long ones are cut to what fits the wire; less than nothing and NaN are refused."""
    assert deadline_after(None) == 0
    now = time.monotonic_ns()
    assert now + 2 * 10**9 <= deadline_after(2) < now + 60 * 10**9
    for forever in (float("inf"), 1e300, 10**30):
        assert deadline_after(forever) < 2**64
    for wrong in (float("nan"), -1, -1e300):
        with pytest.raises(BedsitError) as caught:
            deadline_after(wrong)
        assert caught.value.code == "request.invalid"
