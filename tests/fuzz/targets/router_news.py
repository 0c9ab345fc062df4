"""What the router tells the daemon: the one process that is believed least of those that are ours."""

from collections.abc import Iterator
from typing import Any

import msgspec

from bedsit.ipc.frames import decode_body
from bedsit.supervisor import control
from tests.fuzz.draw import Draw, pack, tell_lies
from tests.fuzz.oracle import attempt

_GOOD: tuple[dict[str, Any], ...] = (
    {"op": "hello", "pid": 12, "version": "0.1.0"},
    {"op": "ack", "serial": 4},
    {"op": "drained", "slot": "s1"},
    {"op": "lost", "slot": "s1"},
    {"op": "misbehaved", "slot": "s1", "count": 8},
    {"op": "stats", "tenants": {"acme": {"requests": 1, "errors": 0, "refused": 0, "busy_us": 3}}},
)


def seeds() -> Iterator[bytes]:
    """Each message as it is and twisted."""
    for index, good in enumerate(_GOOD):
        yield b"\x00" + pack(good)
        yield bytes([1, index, 1, index, 3, 1, 5])
    yield b"\x02" + bytes(range(30))


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """One of the messages that there are, or what ends the link and nothing else."""
    draw = Draw(data)
    kind = draw.byte() % 3
    body = draw.rest() if kind == 0 else pack(draw.twist(draw.pick(_GOOD))) if kind == 1 else tell_lies(draw)
    value = attempt(lambda: (decode_body(body),), "wire.malformed", size=len(body))
    if value is None:
        return
    try:
        message: Any = msgspec.convert(value[0], control._Message)
    except msgspec.ValidationError:
        return
    assert msgspec.convert(msgspec.to_builtins(message), control._Message) == message
