"""Requests in a worker: real tensors over a small arena, whose neighbours on both sides are watched."""

import contextlib
import ctypes
import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from bedsit.ipc import wire
from bedsit.ipc.errors import CODES
from bedsit.ipc.leasepage import LeaseView
from bedsit.ipc.manifest import Batch, Manifest, TensorSpec
from bedsit.ipc.wire import Kind
from bedsit.sandbox.worker.arenas import ArenaTable, Mapped
from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.calls import Calls
from bedsit.sandbox.worker.lanes import Order
from bedsit.sandbox.worker.runners import Runner
from bedsit.sandbox.worker.turns import Turns
from tests.fuzz.draw import Draw
from tests.fuzz.oracle import CPU_S, attempt
from tests.fuzz.shapes import make_packet, make_rows

_GUARD: Final = 1 << 13
_SIZE: Final = 1 << 14
_SECRET: Final = struct.pack("<f", 777.0)
_ARENA: Final = 5
_OFFSETS: Final = (0, 64, 128, 4096, _SIZE - 64, _SIZE - 4, _SIZE, 1 << 40)


def _spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


_PLAIN: Final = Manifest("m", "python", "m:b", (_spec("x", "float32", -1),), (_spec("y", "float32", -1),))
_BATCHED: Final = Manifest(
    "m",
    "python",
    "m:b",
    (_spec("x", "float32", -1, -1), _spec("n", "uint8", -1)),
    (_spec("y", "float32", -1, -1), _spec("n", "uint8", -1)),
    batch=Batch(8, 0.0, 0.0),
)
_WRITER: Final = Manifest("m", "python", "m:b", (_spec("x", "float32", -1),), (_spec("y", "float32", -1, 2),))


def _make_calls() -> tuple[Calls, ArenaTable]:
    arenas = ArenaTable()
    bundles = {(n, 1): Bundle(Path("/"), m, -1, {}) for n, m in enumerate((_PLAIN, _BATCHED, _WRITER, _PLAIN), start=1)}

    def write(x: torch.Tensor) -> torch.Tensor:
        out = bundles[3, 1].output("y", (x.shape[0], 2))
        out[:, 0] = x
        out[:, 1] = -x
        return out

    calls = (lambda x: x + 1, lambda x, n: (x * 2, n), write, lambda x: x)
    models = {key: Runner(bundle, call) for (key, bundle), call in zip(bundles.items(), calls, strict=True)}
    return Calls(models, arenas, Turns(LeaseView.free(), lambda: False, lambda _word, _epoch: None)), arenas


_made: dict[str, Any] = {}


def seeds() -> Iterator[bytes]:
    """Requests to each model, alone and in batches, inline and in the arena, with rooms and without."""
    for model in range(4):
        for orders in range(3):
            yield bytes([orders, model, 1, 8, 1, 1, 1, 0, 1, 1, 1, 1, 4, 1, 1, 1, 1, 1, 1, 1, 1]) * 3
    row = wire.encode_tensor("float32", (2,), wire.Place.ARENA, 64)
    yield bytes([0, 128, len(row) + 16]) + row + wire.encode_region(4096, 64)
    # The same header twice, and the second time it is said to be of five tensors.
    yield bytes([1, 128, len(row)]) + row + bytes([0, 0, len(row)]) + row + bytes([0, 3, 13, 5])


def _draw_packet(draw: Draw, model: int, ident: int) -> bytes:
    """A request that is nearly right."""
    inputs = (1, 2, 1, 1)[model]
    regions = draw.pick((0, 0, 1, 1, 2, 3))
    match draw.byte() % 3:
        case 0:
            rows = make_rows(draw, inputs, _OFFSETS)
        case 1:
            rows = b""
            count, wide = draw.below(20), 1 + draw.below(3)
            for index in range(inputs):
                shape = ((count,), (count, wide))[model == 1 and index == 0]
                place, offset = draw.pick((0, 1, 1)), draw.pick(_OFFSETS)
                rows += wire.encode_tensor(("float32", "uint8")[index], shape, place, offset)
        case _:
            rows = draw.piece()
    rooms = b"".join(
        wire.encode_region(draw.pick(_OFFSETS), draw.pick((64, 128, 4096, 0, 1 << 40, draw.number())))
        for _ in range(regions)
    )
    number = draw.pick((_ARENA, _ARENA, _ARENA, 6))
    body = draw.pick((b"", _SECRET[:2] * 8, b"\x00\x00\x80\x3f" * 64))
    header, model = rows + rooms, model + 1
    return make_packet(draw, header, body, ident=ident, arena=number, tensors=inputs, regions=regions, model=model)


def _run(orders: Sequence[tuple[bytes, tuple[int, ...]]], cancelled: int) -> list[list[bytes]]:
    """What each of the packets was answered with."""
    answers: list[list[bytes]] = [[] for _ in orders]
    made = [Order(bytearray(packet), fields, answers[at].append) for at, (packet, fields) in enumerate(orders)]
    with contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
        _made["calls"].answer(made, lambda order: bool(cancelled) and order.fields[4] == cancelled)
    return answers


def _check_answer(packet: bytes, request: bytes, fields: tuple[int, ...]) -> None:
    """It is under the request's id, and what it points at lies in it, in a room or in an input of the request."""
    envelope = wire.read_envelope(packet)
    assert envelope.id == fields[4]
    if envelope.kind == Kind.ERROR:
        assert wire.decode_error(packet, envelope).code in CODES
        return
    assert envelope.kind == Kind.RESPONSE
    refs = wire.decode_response(wire.header_of(packet, envelope), envelope.tensors)
    inputs, rooms = wire.decode_request(request[48 : 48 + fields[8]], fields[13], fields[14])
    body = wire.body_of(packet, envelope)
    allowed = [(room.offset, room.offset + room.capacity) for room in rooms]
    allowed += [(ref.offset, ref.offset + ref.nbytes) for ref in inputs if ref.place == wire.Place.ARENA]
    for ref in refs:
        if ref.place == wire.Place.INLINE:
            assert ref.offset + ref.nbytes <= len(body)
            assert struct.pack("<f", 778.0) not in bytes(body)
        else:
            assert any(begin <= ref.offset and ref.offset + ref.nbytes <= end for begin, end in allowed)


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """One answer for each request, which decodes; nothing is read or written beside the arena or outside of a room."""
    if not _made:
        _made["calls"], _made["arenas"] = _make_calls()
    _made["calls"]._plans.clear()  # an input means the same whatever was before it
    draw = Draw(data)
    block = bytearray(_SECRET * ((_SIZE + 2 * _GUARD) // 4))
    block[_GUARD : _GUARD + _SIZE] = b"\x00\x00\x80\x3f" * (_SIZE // 4)
    pages = memoryview(block)[_GUARD : _GUARD + _SIZE]
    address = ctypes.addressof(ctypes.c_char.from_buffer(block)) + _GUARD
    _made["arenas"]._arenas[_ARENA] = Mapped(pages, address)  # type: ignore[arg-type]
    count, model = 1 + draw.byte() % 4, draw.byte()
    orders = []
    for ident in range(1, count + 1):
        if model >= 128:
            header = draw.piece()
            packet = make_packet(draw, header, draw.piece(), ident=ident, arena=_ARENA, model=1 + model % 4)
        else:
            packet = _draw_packet(draw, model % 4, ident)
        fields = attempt(lambda packet=packet: wire.read_fields(packet), "wire.malformed")  # type: ignore[misc]
        if fields is not None:
            orders.append((packet, fields))
    if not orders:
        return
    before = bytes(block)
    answers = attempt(lambda: _run(orders, draw.byte() % 8), size=1 << 16)
    assert answers is not None, CPU_S
    assert block[:_GUARD] == before[:_GUARD]
    assert block[-_GUARD:] == before[-_GUARD:]
    expected = bytearray(before)
    for (packet, fields), told in zip(orders, answers, strict=True):
        assert len(told) == 1
        _check_answer(told[0], packet, fields)
        with contextlib.suppress(Exception):
            for room in wire.decode_request(packet[48 : 48 + fields[8]], fields[13], fields[14])[1]:
                begin, end = _GUARD + room.offset, min(_GUARD + room.offset + room.capacity, _GUARD + _SIZE)
                expected[begin:end] = block[begin:end]
    assert block == expected, "written outside of every room"
    assert len(_made["calls"]._plans) <= 256
