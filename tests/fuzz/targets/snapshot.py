"""Snapshots: the router's view of the box, over the link and from the file in the run folder."""

from collections.abc import Iterator

import msgspec

from bedsit.ipc import snapshot as snapshots
from bedsit.ipc.snapshot import KeyView, ModelView, SlotView, Snapshot, TenantView, VersionView
from tests.fuzz.draw import Draw, pack, tell_lies
from tests.fuzz.oracle import attempt

_GOOD = Snapshot(
    1,
    "instance",
    "/run/bedsit",
    [
        TenantView(
            "acme",
            1,
            "running",
            [KeyView("00000001", bytes(32))],
            1 << 20,
            16,
            2,
            4,
            [ModelView("gate", 1, 1, idempotent=True, versions=[VersionView(1, b"manifest")])],
        )
    ],
    [SlotView("s1", "acme", "serving", 100, 100, [(1, 1)])],
)


def seeds() -> Iterator[bytes]:
    """A good one and twists of it."""
    yield b"\x00" + snapshots.encode(_GOOD)
    for index in range(9):
        yield bytes([1, 1, index, 3, 1, 0, 3, index, index])
    yield b"\x02" + bytes(range(30))
    yield bytes([1, 1, 0, 1, 0, 0, 7, 3])  # an unknown key with a very deep value


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """A snapshot that is written and read as the same, or malformed."""
    draw = Draw(data)
    kind = draw.byte() % 3
    if kind == 0:
        body = draw.rest()
    else:
        body = pack(draw.twist(msgspec.to_builtins(_GOOD, builtin_types=(bytes,)))) if kind == 1 else tell_lies(draw)
    snapshot = attempt(lambda: snapshots.decode(body), "wire.malformed", size=len(body))
    if snapshot is not None:
        assert snapshots.encode(snapshots.decode(snapshots.encode(snapshot))) == snapshots.encode(snapshot)
