"""Everything is killed, stopped and starved, under checked load: ``python -m bench.chaos --minutes N --json F``.

Tenants, each with one model: ``a``, ``b`` and ``c`` may be asked again (idempotent), ``d`` may not. Client processes
ask all of them all the time and compare every answer. Meanwhile one fault after the other, drawn by lot:

    kill_*      SIGKILL: daemon, router, zygote, a worker, a slot's init, the parent of all
    stop_*      SIGSTOP for a while, then SIGCONT: the same
    oom         a worker takes more memory than its tenant may
    hang        a call of a model that never returns, and of which no signal handler hears
    full        the state folder is full, and a tenant cannot be created
    read_only   the run folder's records cannot be written, and no slot can be built

A fault counts when its effect was seen: the process is gone, or stopped; the kernel counted an out-of-memory kill; the
daemon ended the slot for its time; somebody was told that the disk is full or read-only. Lost is what neither router
nor client could save: a request that ended in an error. ``lost_hit`` are those of a tenant whose slot was hit, and
those in flight on ``d``, which nobody may ask again; ``lost_bystander`` are all others, and should be none.
"""

import contextlib
import ctypes
import os
import random
import shutil
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bedsit.ipc.client import Client
from bedsit.ipc.errors import CODES, BedsitError
from bench import report
from bench.processes import end, fork
from examples.box import Box, wait_until

_TENANTS: Final = ("a", "b", "c", "d")
_ONCE: Final = "d"  # its model is not idempotent
_CLIENTS: Final = 2  # of each tenant
_MEMORY: Final = "320MiB"
_RUN_S: Final = 2.0  # how long a call may run
#: What follows a fault must not meet the next one: a request is saved once.
_PAUSE_S: Final = 1.2
_STOP_S: Final = (0.1, 0.8)
_EFFECT_S: Final = 20.0
_RECOVER_S: Final = 60.0
#: A request that ends so long after its tenant was hit was hit.
_AFTERMATH_S: Final = 6.0
_RECORD: Final = struct.Struct("<BBHdd")  # tenant, outcome, code, begin, end
_RIGHT, _WRONG, _TYPED, _UNTYPED = range(4)
_CODES: Final = sorted(CODES)
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MNT_DETACH = 1, 32, 4096, 2

_MODEL: Final = """
import ctypes, os

def build(bundle):
    def call(x):
        order = int(x[0])
        if order == 1:  # more than anybody may have, touched
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20)) * 16)
        if order == 2:  # never returns, and holds the interpreter while it does not
            ctypes.PyDLL(None).pause()
        return x * 2
    return call
"""
_TOML: Final = """
name = "double"
runner = "python"
entry = "model:build"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1]
"""
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class _Hits:
    """When which tenants were hit, by the monotonic clock."""

    windows: list[tuple[float, float, frozenset[str]]] = field(default_factory=list)

    def spare(self, tenant: str, began: float, ended: float) -> bool:
        """Whether nothing that happened meanwhile was meant for this tenant."""
        return not any(tenant in who and began <= until and since <= ended for since, until, who in self.windows)


class _Ground(Box):
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


def measure(quick: bool, minutes: float | None) -> dict[str, Any]:  # noqa: FBT001 - as in every benchmark
    """Let clients ask and faults happen for so long; then end everything and look at what is left."""
    minutes = minutes or (0.5 if quick else 10.0)
    dice = random.Random(7)  # noqa: S311 - a seed, so that a run can be repeated
    out_in, out_out = os.pipe()
    os.set_blocking(out_in, False)
    hits, faults, records = _Hits(), Counter[str](), bytearray()
    leftovers: list[str] = []
    with ExitStack() as stack:
        box = _Ground()
        try:
            box.up()
            for tenant in _TENANTS:
                box.read("tenant", "create", tenant, "--memory", _MEMORY, "--cpus", 1)
                box.read("model", "deploy", tenant, _write_bundle(box.folder / tenant, once=tenant == _ONCE))
                # Faults follow one another for minutes: that is nobody's fault, and no reason to take a model out.
                box.admin.call("tenant.set", name=tenant, run_max_s=_RUN_S, quarantine_after=0)
            walls = box.status()["walls"]
            clients = [
                fork(partial(_ask, str(box.run_dir), index, number, out_out))
                for index in range(len(_TENANTS))
                for number in range(_CLIENTS)
            ]
            for pid in clients:
                stack.callback(end, pid)
            plot = _Plot(box, dice, hits)
            until = time.monotonic() + minutes * 60
            while time.monotonic() < until:
                name = plot.happen()
                faults[name] += 1
                _read_all(out_in, records)
                print(f"\r{sum(faults.values())} faults", end="", file=sys.stderr)
            print(file=sys.stderr)
            time.sleep(2 * _PAUSE_S)
            for pid in clients:
                os.kill(pid, signal.SIGTERM)
            _read_all(out_in, records)
            box.read("down")
            box.admin.close()
            leftovers = box.find_leftovers()
        finally:
            box.remove()
    return {"minutes": minutes, "faults": dict(faults), **_judge(records, hits), "leftovers": leftovers, "walls": walls}


def show(result: Mapping[str, Any]) -> None:
    """Print what happened, and what came of it."""
    rows = sorted(result["faults"].items())
    report.print_table(["fault", "seen"], [*rows, ("all", sum(result["faults"].values()))])
    print(
        f"{result['minutes']:g} minutes: {result['requests']:,} requests, {result['wrong']} wrong; lost: "
        f"{result['lost_bystander']} of bystanders, {result['lost_hit']} of those who were hit; "
        f"{result['untyped_errors']} errors without a type; left behind: {', '.join(result['leftovers']) or 'nothing'}"
    )
    print("errors: " + (", ".join(f"{count} {name}" for name, count in result["errors"].items()) or "none"))
    print("longest a bystander waited: {longest_bystander_s} s, anybody: {longest_s} s".format(**result))


class _Plot:
    """What happens, and whether it did."""

    def __init__(self, box: _Ground, dice: random.Random, hits: _Hits) -> None:
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
        time.sleep(_PAUSE_S)
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
            wait_until(is_well, _RECOVER_S, f"everybody serves again after {name}")
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
        self._mark(since, {_ONCE} if who == "router" else set())

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
        tenant = self._dice.choice(_TENANTS)
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
        tenant = self._dice.choice(_TENANTS)
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
                if tenant["name"] not in _TENANTS:  # one that could be made and not be deleted again
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


def _ask(run_dir: str, index: int, number: int, out: int) -> None:
    """Ask until told to stop; every answer is compared."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    tenant = _TENANTS[index]
    numbers = np.random.default_rng(index * 100 + number)
    while True:
        with Client(tenant, run_dir=run_dir, lane="zmq" if number % 2 and index == 1 else "fast") as client:
            while True:
                x = numbers.integers(10, 1000, 16).astype(np.float32)
                began, code = time.monotonic(), 0
                try:
                    y = client.infer("double", {"x": x}, timeout_s=_RECOVER_S)["y"]
                    outcome = _RIGHT if np.array_equal(y, 2 * x) else _WRONG
                except BedsitError as e:
                    outcome = _TYPED if e.code in CODES else _UNTYPED
                    code = _CODES.index(e.code) if e.code in CODES else 0
                except Exception:  # noqa: BLE001 - this is what is counted
                    outcome = _UNTYPED
                os.write(out, _RECORD.pack(index, outcome, code, began, time.monotonic()))
                if outcome != _RIGHT:
                    break
                time.sleep(0.002)


def _judge(records: bytes | bytearray, hits: _Hits) -> dict[str, Any]:
    counts, errors = Counter[str](), Counter[str]()
    longest = longest_bystander = 0.0
    for at in range(0, len(records) - len(records) % _RECORD.size, _RECORD.size):
        index, outcome, code, began, ended = _RECORD.unpack_from(records, at)
        tenant = _TENANTS[index]
        is_spared = hits.spare(tenant, began, ended)
        longest = max(longest, ended - began)
        if is_spared:
            longest_bystander = max(longest_bystander, ended - began)
        counts["requests"] += 1
        counts["wrong"] += outcome == _WRONG
        counts["untyped_errors"] += outcome == _UNTYPED
        if outcome in (_TYPED, _UNTYPED):
            counts["lost_bystander" if is_spared else "lost_hit"] += 1
            errors[f"{_CODES[code]} of {tenant}"] += 1
            if not is_spared and tenant != _ONCE:
                counts["lost_idempotent"] += 1
    names = ("requests", "wrong", "lost_bystander", "lost_hit", "lost_idempotent", "untyped_errors")
    return {
        **{name: counts[name] for name in names},
        "errors": dict(errors.most_common()),
        "longest_s": round(longest, 2),
        "longest_bystander_s": round(longest_bystander, 2),
    }


def _read_all(fd: int, into: bytearray) -> None:
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, 1 << 16):
            into += data


def _is_gone(pid: int) -> bool:
    return _state(pid) in ("", "Z", "X")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]
    except OSError:
        return ""


def _write_bundle(folder: Path, *, once: bool) -> Path:
    folder.mkdir()
    (folder / "bedsit.toml").write_text(f"idempotent = {str(not once).lower()}\n{_TOML}")
    (folder / "model.py").write_text(_MODEL)
    return folder


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


if __name__ == "__main__":
    report.run("chaos", measure, show, report.add_minutes)
