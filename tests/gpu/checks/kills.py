"""kill -9 of a process that holds 20 GiB, idle and in the middle of an endless kernel: until when is what gone."""

import statistics
import time
from typing import Any, Final

from tests.gpu.nvml import Nvml, await_true
from tests.gpu.peer import Peer, busy
from tests.gpu.report import Report

_GIB: Final = 20
_TIMES: Final = 2
_NEAR_MIB: Final = 300.0
_KERNEL_MS: Final = 1.0


def check(report: Report) -> None:
    """Each way a few times, beside a neighbour that computes and measures its longest wait."""
    with Nvml() as nvml, Peer("worker:compute") as neighbour:
        neighbour.ask("open")
        for is_busy in (False, True):
            what = "in an endless kernel" if is_busy else "idle"
            with report.step(f"kill -9, {what}"):
                runs = [_kill(nvml, neighbour, is_busy=is_busy) for _ in range(report.times(_TIMES))]
                _tell(report, what, runs)


def _kill(nvml: Nvml, neighbour: Peer, *, is_busy: bool) -> dict[str, Any]:
    before = nvml.used_mib()
    with busy([neighbour], "watch", ms=_KERNEL_MS) as seen, Peer("holder:hold") as holder:
        holder.ask("open")
        taken = holder.ask("allocate", gib=_GIB, byte=1)
        held = nvml.used_mib() - before
        if is_busy:
            holder.ask("hang")
            # Some hundred slices of it, and long since beyond any launch latency.
            time.sleep(0.3)
        killed_at = time.monotonic()
        holder.kill()
        dead = await_true(lambda: holder.process.poll() is not None, 12)
        gone = await_true(lambda: holder.pid not in nvml.processes_mib(), 5)
        await_true(lambda: nvml.used_mib() - before < _NEAR_MIB, 8)
        freed_ms = (time.monotonic() - killed_at) * 1e3
        left = nvml.used_mib() - before
    return {
        "dead_ms": None if dead is None else dead * 1e3,
        "listed_after_death_ms": None if gone is None else gone * 1e3,
        "free_ms": freed_ms if left < _NEAR_MIB else None,
        "held_mib": held,
        "left_mib": left,
        "neighbour": seen[0]["latency"],
        "longest_after_kill_ms": (seen[0]["longest_at"] - killed_at) * 1e3,
        **taken,
    }


def _tell(report: Report, what: str, runs: list[dict[str, Any]]) -> None:
    freed = [run["free_ms"] for run in runs if run["free_ms"] is not None]
    dead = [run["dead_ms"] for run in runs if run["dead_ms"] is not None]
    if not freed or not dead:
        report.row(
            f"kill -9 of {_GIB} GiB, {what}", f"not free within 8 s, {runs[0]['left_mib']:.0f} MiB left", "", ok=False
        )
        return
    report.row(
        f"kill -9 of {_GIB} GiB, {what}",
        f"dead after {statistics.median(dead):.0f}, free after {statistics.median(freed):.0f} ms (n {len(freed)})",
        "<= 1-2 s",
        len(freed) == len(runs) and max(freed) <= 2000,
        runs=runs,
    )
    worst = max(run["neighbour"]["max"] for run in runs)
    typical = statistics.median(run["neighbour"]["p50"] for run in runs)
    at = [f"{run['longest_after_kill_ms']:.0f}" for run in runs]
    report.row(
        f"its neighbour's 1 ms kernels meanwhile, {what}",
        f"p50 {typical:.2f}, longest {worst:.0f} ms, which ended {', '.join(at)} ms after the kill",
    )
