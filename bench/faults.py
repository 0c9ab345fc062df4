"""What `bench.chaos` does to a box: one fault after the other, each until its effect was seen and is mended.

A fault counts when its effect was seen: the process is gone, or stopped; the kernel counted an out-of-memory kill; the
daemon ended the slot for its time; somebody was told that the disk is full or read-only.
"""

import contextlib
import ctypes
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from bedsit.ipc.client import Client
from bedsit.ipc.errors import BedsitError
from examples.box import Box, wait_until

TENANTS: Final = ("a", "b", "c", "d")
ONCE: Final = "d"  # its model is not idempotent
#: What follows a fault must not meet the next one: a request is saved once.
PAUSE_S: Final = 1.2
RECOVER_S: Final = 60.0
_STOP_S: Final = (0.1, 0.8)
_EFFECT_S: Final = 20.0
#: A request that ends so long after its tenant was hit was hit.
_AFTERMATH_S: Final = 6.0
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MNT_DETACH = 1, 32, 4096, 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Hits:
    """When which tenants were hit, by the monotonic clock."""

    windows: list[tuple[float, float, frozenset[str]]] = field(default_factory=list)

    def spare(self, tenant: str, began: float, ended: float) -> bool:
        """Whether nothing that happened meanwhile was meant for this tenant."""
        return not any(tenant in who and began <= until and since <= ended for since, until, who in self.windows)


class Ground(Box):
    """A box whose run and state folders are small file systems of their own."""

    def __init__(self) -> None:
        super().__init__({"pool_size": 2, "residence_s": 1.0})
        self.mounts: list[Path] = []
        for folder, size in ((self.run_dir, "64m"), (self.state_dir, "16m")):
            folder.mkdir()
            _mount(folder, size)
            self.mounts.append(folder)

    def find_leftovers(self) -> list[str]:
        """What is left, but for the file systems that were here before."""
        ours = {f"mount {folder}" for folder in self.mounts}
        return [left for left in super().find_leftovers() if left not in ours]

    def remove(self) -> None:
        """The file systems go last: what is in them is how the processes are found."""
        super().remove()
        for folder in self.mounts:
            _libc.umount2(os.fsencode(folder), _MNT_DETACH)
        self.mounts.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class Plot:
    """What happens, and whether it did."""

    def __init__(self, box: Ground, dice: random.Random, hits: Hits) -> None:
        self._box, self._dice, self._hits = box, dice, hits
        self._faults: dict[str, Callable[[], None]] = {
            **{f"kill_{who}": partial(self._kill, who) for who in ("daemon", "router", "zygote", "parent")},
            **{f"stop_{who}": partial(self._stop, who) for who in ("daemon", "router", "zygote", "parent")},
            "kill_worker": self._kill_worker,
            "kill_init": partial(self._kill_worker, "init_pid"),
            "stop_worker": self._stop_worker,
            "oom": partial(self._order, 1, "oom"),
            "hang": partial(self._order, 2, "timeout"),
            "full": self._fill,
            "read_only": self._write_protect,
        }
        self._bag: list[str] = []

    def happen(self) -> str:
        """The next fault: draws all of them before one comes again. Blocks until its effect was seen and is mended."""
        if not self._bag:
            self._bag = list(self._faults)
            self._dice.shuffle(self._bag)
        name = self._bag.pop()
        self._faults[name]()
        self._recover(name)
        time.sleep(PAUSE_S)
        return name

    def _recover(self, name: str) -> None:
        """Wait until everybody serves again and the pool is full."""

        def is_well() -> bool:
            try:
                status = self._box.status()
            except BedsitError:
                return False
            pool = status["pool"]
            serving = all(tenant["state"] == "running" for tenant in status["tenants"])
            there = status["router"]["connected"] and status["zygote"]["pid"] and self._parent()
            return bool(serving and there and pool["blank"] >= pool["target"])

        try:
            wait_until(is_well, RECOVER_S, f"everybody serves again after {name}")
        except TimeoutError as e:
            raise RuntimeError(f"{e}: {self._explain()}") from None

    def _explain(self) -> str:
        """What is not as it should be, for whoever has to find out why."""
        try:
            status = self._box.status()
            events = list(self._box.admin.stream("events", limit=12))
        except BedsitError as e:
            return f"the daemon says nothing: {e}"
        tenants = {tenant["name"]: tenant["state"] for tenant in status["tenants"]}
        parts = {name: status[name] for name in ("pool", "zygote", "router")}
        said = "; ".join(f"{event['at']} {event['kind']} {event['tenant']} {event['text']}" for event in events)
        return f"{tenants}, {parts}, parent {self._parent()}; {said}"

    def _find(self, who: str) -> int:
        if who == "parent":
            return self._parent()
        status = self._box.status()
        return int(status["pid"] if who == "daemon" else status[who]["pid"])

    def _parent(self) -> int:
        """The process behind ``bedsit up``."""
        mine = str(self._box.run_dir).encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if b"up" in words and mine in words:
                        return int(entry.name)
        return 0

    def _mark(self, since: float, tenants: set[str]) -> None:
        self._hits.windows.append((since, time.monotonic() + _AFTERMATH_S, frozenset(tenants)))

    def _kill(self, who: str) -> None:
        since, pid = time.monotonic(), self._find(who)
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            wait_until(lambda: _is_gone(pid), _EFFECT_S, f"{who} is gone")
        finally:
            os.close(pidfd)
        if who == "parent":
            self._box.read("up", "--detach", *self._place())
        # A router takes along what it had in flight: what may not be asked again is lost.
        self._mark(since, {ONCE} if who == "router" else set())

    def _place(self) -> tuple[object, ...]:
        box = self._box
        return "--run-dir", box.run_dir, "--state-dir", box.state_dir, "--config", box.config

    def _stop(self, who: str) -> None:
        pid = self._find(who)
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: _state(pid) == "T", _EFFECT_S, f"{who} is stopped")
            time.sleep(self._dice.uniform(*_STOP_S))
        finally:
            os.kill(pid, signal.SIGCONT)

    def _worker(self, key: str = "worker_pid") -> tuple[str, int]:
        tenant = self._dice.choice(TENANTS)
        rows = [row for row in self._box.admin.call("ps") if row["tenant"] == tenant and row["state"] == "serving"]
        return tenant, int(rows[0][key])

    def _kill_worker(self, key: str = "worker_pid") -> None:
        since = time.monotonic()
        tenant, pid = self._worker(key)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: _is_gone(pid), _EFFECT_S, f"{key} of {tenant} is gone")
        self._mark(since, {tenant})

    def _stop_worker(self) -> None:
        _, pid = self._worker()
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: _state(pid) == "T", _EFFECT_S, "a worker is stopped")
            time.sleep(self._dice.uniform(*_STOP_S))
        finally:
            os.kill(pid, signal.SIGCONT)

    def _order(self, what: int, cause: str) -> None:
        """Have a model do harm to itself; the daemon says why its slot ended."""
        tenant = self._dice.choice(TENANTS)
        since = time.monotonic()
        before = self._box.tenant(tenant)["restarts"]
        with Client(tenant, run_dir=str(self._box.run_dir)) as client, contextlib.suppress(BedsitError):
            client.infer("double", {"x": np.full(4, what, np.float32)}, timeout_s=_EFFECT_S)

        def is_over() -> bool:
            now = self._box.tenant(tenant)
            return bool(now["restarts"] > before and now["last_cause_kind"] == cause)

        wait_until(is_over, _EFFECT_S, f"a slot of {tenant} ended: {cause}")
        self._mark(since, {tenant})

    def _fill(self) -> None:
        """Nothing can be written down; what runs goes on."""
        filler = self._box.state_dir / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", 0) as file:
                while True:
                    file.write(bytes(1 << 16))
            self._await_refusal("disk.full")
        finally:
            filler.unlink(missing_ok=True)
            for tenant in self._box.admin.call("tenant.list"):
                if tenant["name"] not in TENANTS:  # one that could be made and not be deleted again
                    self._box.admin.call("tenant.delete", name=tenant["name"])

    def _await_refusal(self, code: str) -> None:
        for number in range(1000):
            try:
                self._box.admin.call("tenant.create", name=f"x{number}", memory_bytes=256 << 20)
            except BedsitError as e:
                if e.code == code:
                    return
                raise
            finally:
                with contextlib.suppress(BedsitError):
                    self._box.admin.call("tenant.delete", name=f"x{number}")
        raise RuntimeError(f"nobody was told {code}")

    def _write_protect(self) -> None:
        """No record can be written, so no slot is built."""
        before = max((event["id"] for event in self._box.admin.stream("events", limit=1)), default=0)
        blank = next(row for row in self._box.admin.call("ps") if row["state"] == "blank")
        records = self._box.run_dir / "records"
        with _read_only(records):
            os.kill(int(blank["worker_pid"]), signal.SIGKILL)

            def is_refused() -> bool:
                events = list(self._box.admin.stream("events", limit=50))
                return any(event["id"] > before and event["kind"] == "slot.refused" for event in events)

            wait_until(is_refused, _EFFECT_S, "a slot is refused")


def _is_gone(pid: int) -> bool:
    return _state(pid) in ("", "Z", "X")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]
    except OSError:
        return ""


def _mount(folder: Path, size: str) -> None:
    # JUSTIFICATION: mount(8) would be a program more that has to be there.
    if _libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size},mode=0755".encode()):
        raise OSError(ctypes.get_errno(), f"mounting {folder}")


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Nothing in *folder* can be written: it is mounted over itself, and that mount is for reading."""
    path = os.fsencode(folder)
    for flags in (_MS_BIND, _MS_BIND | _MS_REMOUNT | _MS_RDONLY):
        if _libc.mount(path, path, None, flags, None):
            raise OSError(ctypes.get_errno(), f"mounting {folder}")
    try:
        yield
    finally:
        _libc.umount2(path, _MNT_DETACH)
