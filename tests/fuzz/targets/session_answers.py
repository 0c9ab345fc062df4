"""What a client makes of the packets that come back: its router passes a worker's answer on unread."""

import gc
import os
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch  # noqa: F401 - the first tensor would load it, in an input's time

from bedsit.ipc import wire
from bedsit.ipc.arena import Arena
from bedsit.ipc.door import ModelInfo
from bedsit.ipc.errors import CODES, BedsitError, error
from bedsit.ipc.manifest import Manifest, TensorSpec
from bedsit.ipc.session import Pending, Session
from bedsit.ipc.wire import Kind
from tests.fuzz.draw import Draw, pack, tell_lies
from tests.fuzz.oracle import attempt
from tests.fuzz.shapes import make_packet, make_rows

_SIZE: Final = 1 << 18


def _spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def _info(number: int, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> ModelInfo:
    return ModelInfo(number, 1, Manifest("m", "python", "m:b", inputs, outputs))


_SMALL: Final = _info(1, (_spec("x", "float32", -1),), (_spec("y", "float32", -1),))
_LARGE: Final = _info(2, (_spec("x", "uint8", -1),), (_spec("y", "uint8", -1), _spec("z", "bfloat16", -1, 3)))
_ODD: Final = _info(3, (_spec("b", "bool", -1),), (_spec("c", "complex128", -1, -1), _spec("s", "int16")))
_ROW: Final = wire.encode_tensor("float32", (1,), wire.Place.INLINE, 0)
_ERROR: Final = error("output.too_small", "more room", needed=[70000, 4096]).to_wire()


def seeds() -> Iterator[bytes]:
    """Right answers to each model, errors, and drawn ones."""
    yield b"\x00\x00\x00" + _ROW + bytes(4)
    for model in range(3):
        for tensors in range(2):
            for index in range(4):
                yield bytes([1, model, tensors, index, 1, 0, 1, 1, 1, 1, index, 1, 0, 1, 1])
    for tensors in range(2):
        for one in range(1, 4):
            yield bytes([5, 0, tensors, 0, 0, one, 0, 0])
            for other in range(1, 4):
                yield bytes([5, 1, tensors, 0, 0, one, 0, 0, 0, other, 0, 0])
                yield bytes([5, 2, tensors, 0, 0, 0, one, 0, 0, other, 0, 0])
    yield b"\x02\x00\x00" + bytes([1, 2, 3, 4])
    yield b"\x03\x01\x00" + bytes([9, 9, 9])
    yield b"\x04\x00\x00" + bytes(range(30))


def _begin(session: Session, which: int) -> tuple[Pending, bytes]:
    if which == 0:
        return session.begin(_SMALL, None, {"x": np.ones(1, np.float32)}, 0)
    if which == 1:
        array = session.arena.empty(20000, "uint8")
        array[:] = 7
        return session.begin(_LARGE, None, {"x": array}, 0)
    return session.begin(_ODD, 1, {"b": np.ones(9000, bool)}, 0)


def _list_memory(pending: Pending) -> list[tuple[int, int]]:
    """Where in the arena answers to this request may lie: from, to."""
    rooms = [(room.offset, room.offset + room.capacity) for room in pending.rooms]
    return rooms + [(start, start + nbytes) for _, start, nbytes in pending.sources]


def _answer(draw: Draw, kind: int, pending: Pending, packet: bytes) -> bytes:
    offsets = (0, *(begin for begin, _ in _list_memory(pending)))
    match kind % 6:
        case 0:
            header = draw.take(min(draw.left, wire.read_envelope(packet).header_bytes))
            return make_packet(Draw(b""), header, draw.rest(), ident=pending.id, kind=Kind.RESPONSE)
        case 1:
            count = 1 + draw.below(3)
            header = make_rows(draw, count, offsets)
            return make_packet(draw, header, draw.piece(), ident=pending.id, kind=Kind.RESPONSE, tensors=count)
        case 2:
            header = pack(draw.twist(_ERROR))
        case 3:
            header = tell_lies(draw)
        case 4:
            return draw.rest()
        case _:  # nearly right: what is declared, at one of the places where it may be
            header = b""
            specs = pending.info.manifest.outputs if pending.info is not None else ()
            for spec in specs:
                shape = [dim if dim >= 0 else draw.pick((1, 0, 2, 1000, 7000)) for dim in spec.shape]
                place, offset = draw.pick((1, 1, 0)), draw.pick(offsets) + draw.pick((0, 0, 0, 1, 16, 64))
                header += wire.encode_tensor(spec.dtype, shape, place, offset)
            body = bytes(draw.pick((0, 4, 64, 8000)))
            return make_packet(draw, header, body, ident=pending.id, kind=Kind.RESPONSE, tensors=len(specs))
    return make_packet(draw, header, b"", ident=pending.id, kind=draw.pick((Kind.ERROR, Kind.ERROR, Kind.TOLD)))


def _check(pending: Pending, info: ModelInfo, session: Session) -> None:
    """A finished request holds nothing, and gives a refusal or every output, as it was declared."""
    assert pending.done
    assert pending.rooms == pending.sources == pending.kept == ()
    try:
        outputs = pending.take()
    except BedsitError as e:
        assert type(e) is CODES.get(e.code, BedsitError)
        session.learn_sizes(info, e)
        return
    assert list(outputs) == [spec.name for spec in info.manifest.outputs]


def _check_places(arena: Arena, outcome: dict[str, Any], spans: list[tuple[int, int]]) -> None:
    """What lies in the arena lies where this request may have its answer."""
    for value in outcome.values():
        at = value.data_ptr() if hasattr(value, "data_ptr") else value.__array_interface__["data"][0]
        start = at - arena.address
        inside = any(begin <= start and start + value.nbytes <= end for begin, end in spans)
        assert inside or not value.nbytes or not -value.nbytes < start < _SIZE


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """The request that a packet names ends once, with outputs inside its own memory or an error; then all is free."""
    draw = Draw(data)
    kind, which, tensors = draw.byte(), draw.byte() % 3, draw.byte() % 2
    fd = os.memfd_create("arena")
    os.ftruncate(fd, _SIZE)
    arena = Arena(fd, _SIZE, 1)
    session = Session(arena, "torch" if tensors else "numpy")
    info = (_SMALL, _LARGE, _ODD)[which]
    pending, packet = _begin(session, which)
    spans = _list_memory(pending)
    if kind % 16 == 15:
        session.withdraw(pending)
    answer = _answer(draw, kind, pending, packet)
    ended = attempt(lambda: session.accept(answer), "wire.malformed")
    assert ended in (None, pending)
    if ended is None:
        assert session.in_flight() == 1
        session.fail_all(error("router.restarted", "gone"))
    assert session.in_flight() == 0
    _check_places(arena, pending.outcome or {}, spans)
    _check(pending, info, session)
    assert len(session._answers) <= 256
    del pending, ended
    if arena.free_bytes() != _SIZE:
        gc.collect()
    assert arena.free_bytes() == _SIZE
