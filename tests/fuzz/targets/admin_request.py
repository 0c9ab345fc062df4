"""Requests to the daemon: frames of whoever may open the admin socket, as types."""

from collections.abc import Iterator
from typing import Any

import msgspec

from bedsit.ipc.frames import decode_body
from bedsit.supervisor.admin import schema
from tests.fuzz.draw import Draw, pack, tell_lies
from tests.fuzz.oracle import attempt

_LIMITS = {
    "memory_bytes": 1 << 30,
    "cpus": 0.5,
    "pids": 64,
    "cpu_weight": 100,
    "cpu_idle": False,
    "cores": "0-3,6",
    "io_bps": 0,
    "weight": 100,
    "service_class": "batch",
    "min_share": 0.25,
    "rate_per_s": 10.5,
    "burst": 3,
    "concurrency_max": 0,
    "queue_max": 8,
    "queue_bytes_max": 1 << 20,
    "sessions_max": 4,
}
_ARGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("tenant.create", {"name": "acme", "isolation": "strict", "profile": "standard"} | _LIMITS),
    ("tenant.set", {"name": "acme"} | _LIMITS),
    ("key.create", {"tenant": "acme", "label": "laptop"}),
    ("key.revoke", {"tenant": "acme", "id": "0000000a"}),
    ("model.deploy", {"tenant": "acme", "name": "gate", "size": 4096, "digest": "0" * 64, "timeout_s": 1.5}),
    ("model.set", {"tenant": "acme", "name": "gate", "priority": 2, "queue_max": 0}),
    ("model.delete", {"tenant": "acme", "name": "gate", "version": 1}),
    ("events", {"limit": 10, "follow": True}),
    ("logs", {"tenant": "acme", "lines": 5}),
    ("status", {"inspect": True}),
    ("down", {}),
)


def seeds() -> Iterator[bytes]:
    """Every operation, twisted at its arguments."""
    for index, (op, args) in enumerate(_ARGS):
        yield b"\x00" + pack({"v": 1, "op": op, "args": args})
        yield bytes([1, index, 1, 2, 3, 1, index, 3, 1, 4])
    yield b"\x02" + bytes(range(30))


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """A request that says the same when it is asked again, or a refusal."""
    draw = Draw(data)
    kind = draw.byte() % 3
    if kind == 0:
        body = draw.rest()
    elif kind == 1:
        op, args = draw.pick(_ARGS)
        body = pack(draw.twist({"v": 1, "op": op, "args": args}))
    else:
        body = tell_lies(draw)
    message = attempt(lambda: (decode_body(body),), "wire.malformed", size=len(body))
    if message is None:
        return
    request = attempt(lambda: schema.read_request(message[0]), "request.invalid", size=len(body))
    if request is not None:
        args = msgspec.to_builtins(request)
        op = args.pop("op")
        assert schema.read_request({"v": 1, "op": op, "args": args}) == request
