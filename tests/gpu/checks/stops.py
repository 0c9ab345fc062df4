"""A process that is stopped, by SIGSTOP or by its cgroup: its queued work goes on, and it cannot be locked."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.gpu.nvml import Nvml
from tests.gpu.peer import Peer, PeerError
from tests.gpu.report import Report
from tests.gpu.suspender import start_suspender

_KERNEL_MS: Final = 250.0
_QUEUED: Final = 10
_LOCK_MS: Final = 1000
_LOCK_WAIT_S: Final = 4.0
_GROUPS: Final = Path("/sys/fs/cgroup")


def check(report: Report) -> None:
    """The same twice, with the two ways to stop it."""
    with report.step("SIGSTOP"), Peer("worker:compute") as target:
        target.ask("open")
        _stop(report, target, "SIGSTOP", target.stop, target.go)
    with report.step("cgroup freezer"), Peer("worker:compute") as target, _freezer(target.pid) as (freeze, thaw):
        target.ask("open")
        _stop(report, target, "frozen", freeze, thaw)


def _stop(report: Report, target: Peer, what: str, stop: Callable[[], None], go: Callable[[], None]) -> None:
    queued_ms = _KERNEL_MS * _QUEUED
    with Nvml() as nvml:
        target.ask("queue", ms=_KERNEL_MS, count=_QUEUED)
        stop()
        try:
            # Its last sample period is up to a second long, and covers what was before.
            busy = _sample(nvml, queued_ms / 1e3 + 0.6)
            during = [percent for at, percent in busy if 1.2 < at < queued_ms / 1e3 - 0.2]
            mean = sum(during) / max(len(during), 1)
            report.row(
                f"{what}: GPU busy meanwhile",
                f"{mean:.0f} % of {queued_ms / 1e3:g} s queued",
                "busy",
                mean > 80,
                samples=busy,
            )
            _lock(report, target, what)
        finally:
            go()
        began = time.monotonic()
        elapsed = target.ask("collect")["elapsed_ms"]
        waited_ms = (time.monotonic() - began) * 1e3
        report.row(
            f"{what}: the queued work",
            f"{elapsed:.0f} ms by the GPU's clock, {waited_ms:.0f} ms left after waking",
            "was done meanwhile",
            waited_ms < queued_ms / 2,
        )
    with start_suspender() as suspender:
        state = suspender.ask("state", pid=target.pid)["state"]
        figure = state
        if state == "locked":
            figure += f", unlock {suspender.ask('unlock', pid=target.pid, wait_s=5)['name']}"
        after = target.ask("loop", ms=1.0, at=time.monotonic(), seconds=0.1, wait_s=5)["done"]
        report.row(f"{what}: state once awake", f"{figure}, {after} more kernels", "running", state == "running")


def _sample(nvml: Nvml, seconds: float) -> list[tuple[float, int]]:
    began = time.monotonic()
    samples = []
    while (at := time.monotonic() - began) < seconds:
        samples.append((round(at, 3), nvml.busy_percent()))
        time.sleep(0.05)
    return samples


def _lock(report: Report, target: Peer, what: str) -> None:
    """Try to lock it while it is stopped, through a process that may hang with it."""
    with start_suspender() as suspender:
        began = time.monotonic()
        try:
            said = suspender.ask("lock", pid=target.pid, timeout_ms=_LOCK_MS, wait_s=_LOCK_WAIT_S)
            figure = f"{said['name']} after {said['ms']:.0f} ms"
            is_refused = said["code"] != 0
            if not is_refused:
                suspender.ask("unlock", pid=target.pid, wait_s=_LOCK_WAIT_S)
        except (TimeoutError, PeerError) as e:
            suspender.kill()
            status = suspender.leave(3)
            figure = f"{type(e).__name__} after {time.monotonic() - began:.1f} s; caller killed: {status}"
            is_refused = True
    report.row(f"{what}: lock with {_LOCK_MS} ms", figure, "an error or a hang", is_refused)


@contextmanager
def _freezer(pid: int) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """A cgroup with this process alone in it; raises OSError where none can be made."""
    is_v2 = (_GROUPS / "cgroup.controllers").exists()
    root = _GROUPS if is_v2 else _GROUPS / "freezer"
    file, frozen, thawed = ("cgroup.freeze", "1", "0") if is_v2 else ("freezer.state", "FROZEN", "THAWED")
    if not root.is_dir():
        raise OSError(f"no cgroup v2 and no freezer at {root}")
    before = _find_group(pid, is_v2=is_v2)
    group = root / f"bedsit-gpu-check-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        yield (lambda: _write(group / file, frozen)), (lambda: _write(group / file, thawed))
    finally:
        (group / file).write_text(thawed)
        (root / before.lstrip("/") / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def _find_group(pid: int, *, is_v2: bool) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (is_v2 and not controllers) or (not is_v2 and "freezer" in controllers.split(",")):
            return path
    return "/"


def _write(file: Path, text: str) -> None:
    file.write_text(text)
