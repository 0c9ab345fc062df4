"""A real router inside this process, one turn of its loop at a time: its door, its sessions, its slots' sockets.

For fuzzers that want its code in sight. The ZeroMQ lanes are left to the live abuse: libzmq's threads have a time of
their own, and an input has to mean the same each time.
"""

import heapq
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from bedsit.ipc import snapshot as snapshots
from bedsit.ipc.manifest import Batch, Manifest, TensorSpec
from bedsit.ipc.snapshot import DeviceView, ModelView, SlotView, Snapshot, TenantView, VersionView, gate_box
from bedsit.supervisor.router.door import Door
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.router import Router

_SPEC: Final = (TensorSpec("x", "float32", (-1,)),)
PLAIN: Final = Manifest("gate", "python", "model:build", _SPEC, _SPEC).encode()
BATCHED: Final = Manifest("gate", "python", "model:build", _SPEC, _SPEC, batch=Batch(4, 1.0)).encode()
ARENA_BYTES: Final = 1 << 16
DONTWAIT: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


def make_tenant(name: str, number: int, **changes: Any) -> TenantView:
    """A tenant with one model, in two versions."""
    versions = [VersionView(1, PLAIN), VersionView(2, BATCHED)]
    fields: dict[str, Any] = {
        "name": name,
        "number": number,
        "state": "running",
        "keys": [],
        "arena_bytes": ARENA_BYTES,
        "queue_max": 8,
        "max_inflight": 2,
        "sessions_max": 8,
        "models": [ModelView("gate", 1, 1, idempotent=True, versions=versions)],
    }
    return TenantView(**(fields | changes))


class House:
    """The router and its folder. ``with`` it; nothing is left afterwards."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bedsit-fuzz-"))
        self.heard: list[dict[str, Any]] = []
        self._serial = 0
        for name in ("router", "slots"):
            (self.folder / name).mkdir()
        self.loop = Loop()
        self.router = Router(self.folder, self.loop)
        self.router.tell = self._hear
        self.door = Door(self.folder / "router" / "door.sock", self.router, self.loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.door.close(for_good=True)
        self.router.close()
        self.loop._epoll.close()
        shutil.rmtree(self.folder)

    def _hear(self, message: dict[str, Any]) -> None:
        self.heard = [*self.heard[-15:], message]

    def apply(
        self,
        tenants: list[TenantView],
        slots: list[SlotView],
        parallel: int = 0,
        devices: Sequence[DeviceView] = (),
    ) -> None:
        """Be the daemon: say what there is now."""
        self._serial += 1
        view = Snapshot(self._serial, "test", str(self.folder), tenants, slots, [*gate_box(parallel), *devices])
        self.router.apply(snapshots.decode(snapshots.encode(view)))

    def turn(self, count: int = 1) -> None:
        """So many turns of the loop."""
        for _ in range(count):
            self.loop._stopped = False
            self.loop.again(self.loop.stop)
            self.loop.run()

    def pass_time(self, seconds: float) -> None:
        """Do now what is due within so many seconds, once."""
        timers = self.loop._timers
        due = [entry for entry in timers if entry[0] <= time.monotonic() + seconds]
        for entry in due:
            timers.remove(entry)
        heapq.heapify(timers)
        for entry in sorted(due):
            entry[2]()
        self.turn()

    def settle(self) -> None:
        """Until everything that is on its way has arrived."""
        for _ in range(3):
            self.turn(2)
            self.pass_time(0.01)

    def knock(self) -> socket.socket:
        """A connection to the door."""
        return _dial(self.folder / "router" / "door.sock")

    def make_slot(self, slot: str, tenant: str) -> SlotView:
        """A slot of this user's, with a folder."""
        (self.folder / "slots" / slot).mkdir(exist_ok=True)
        return SlotView(slot, tenant, "serving", os.getuid(), os.getgid(), [(1, 1), (1, 2)])

    def dial_slot(self, slot: str) -> socket.socket:
        """Be its worker."""
        return _dial(self.folder / "slots" / slot / "fd.sock")


def _dial(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.connect(str(path))
    except OSError:
        link.close()
        raise
    link.setblocking(False)
    return link
