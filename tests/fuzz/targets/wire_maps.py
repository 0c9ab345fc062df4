"""Headers in msgpack: questions to the router, its answers, errors; and what a client makes of them."""

from collections.abc import Iterator
from typing import Any

import msgpack

from bedsit.ipc import wire
from bedsit.ipc.door import read_model_info, read_model_list
from bedsit.ipc.errors import CODES, BedsitError, error
from bedsit.ipc.manifest import Manifest, TensorSpec
from bedsit.ipc.wire import Kind
from tests.fuzz.draw import Draw, pack, tell_lies
from tests.fuzz.oracle import attempt, count_parts, same

_SPEC = (TensorSpec("x", "float32", (-1,)),)
_MANIFEST = Manifest("gate", "python", "model:build", _SPEC, _SPEC).encode()
_GOOD: tuple[Any, ...] = (
    {"op": "describe", "model": "gate", "version": 0},
    {"number": 1, "version": 1, "manifest": _MANIFEST},
    {"models": [["gate", [2, 1]], ["other", [1]]]},
    error("output.too_small", "more room", "try again", needed=[4096, 0]).to_wire(),
)


def seeds() -> Iterator[bytes]:
    """Each map as it is, then ways to twist it, then lies about lengths."""
    for index, good in enumerate(_GOOD):
        yield b"\x00" + msgpack.packb(good)
        yield bytes([1, index, 3, 0, 2, 4, 0])
    yield b"\x02" + bytes(range(64))
    yield b"\x00" + b"\x91" * 1000 + b"\x01"


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """A map is a value no larger than its bytes, or malformed; an error can always be made of it."""
    draw = Draw(data)
    match draw.byte() % 3:
        case 0:
            header = draw.rest()
        case 1:
            header = pack(draw.twist(draw.pick(_GOOD)))
        case _:
            header = tell_lies(draw)
    if len(header) > wire.MAX_PACKET - wire.ENVELOPE_BYTES:
        return
    packet = wire.pack_packet(Kind.TOLD, 1, header)
    envelope = wire.read_envelope(packet)
    failure = attempt(lambda: wire.decode_error(packet, envelope), "wire.malformed")
    value = attempt(lambda: (wire.read_map(packet, envelope),), "wire.malformed")
    assert (failure is None) == (value is None)
    if value is None or failure is None:
        return
    assert count_parts(value[0]) <= len(header)
    assert same(wire.decode_error(packet, envelope).detail, failure.detail)
    assert type(failure) is CODES.get(failure.code, BedsitError)
    assert max(len(failure.message), len(failure.hint)) <= 4096
    info = attempt(lambda: read_model_info(value[0]), "wire.malformed", "bundle.invalid")
    if info is not None:
        assert read_model_info({"number": info.number, "version": info.version, "manifest": info.manifest.encode()})
    listed = attempt(lambda: read_model_list(value[0]), "wire.malformed")
    if listed is not None:
        assert read_model_list({"models": list(listed.items())}) == listed
