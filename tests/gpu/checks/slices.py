"""How the driver shares the GPU between processes: a victim with 1 ms kernels beside ones that never stop."""

from contextlib import ExitStack
from time import monotonic
from typing import Any, Final

from tests.gpu.figures import show
from tests.gpu.peer import Peer, busy
from tests.gpu.report import Report

_AGGRESSORS: Final = 3
_KERNEL_MS: Final = 1.0
#: What the aggressors launch, and how much of it is queued.
_FLOOD_MS: Final = 20.0
_TRACE_MS: Final = 250.0
_GAP_US: Final = 50.0


def check(report: Report) -> None:
    """Alone, beside one, beside three, with stream priorities; and where the GPU's own clock says the gaps are."""
    seconds = max(0.5, report.scale)
    with ExitStack() as stack:
        victim = stack.enter_context(Peer("worker:compute"))
        rounds = victim.ask("open")["rounds_per_ms"]
        alone = _loop(victim, seconds)
        report.row("1 ms kernels, no other context", show(alone), "", **alone)
        aggressors = [stack.enter_context(Peer("worker:compute")) for _ in range(_AGGRESSORS)]
        for peer in aggressors:
            peer.tell("open", rounds_per_ms=rounds)
        for peer in aggressors:
            peer.hear()
        idle = _loop(victim, seconds)
        report.row(
            "1 ms kernels beside 3 idle contexts", show(idle), "as alone", idle["p50"] < 1.2 * alone["p50"], **idle
        )
        report.row("looking at the clock, alone", _trace(report, "alone", victim), "no gaps")
        for count in (1, _AGGRESSORS):
            with report.step(f"beside {count} that flood"), busy(aggressors[:count], "flood", ms=_FLOOD_MS):
                seen = _loop(victim, seconds)
                report.row(f"1 ms kernels beside {count} with 20 ms kernels", show(seen), "", **seen)
                report.row(
                    f"looking at the clock, beside {count}", _trace(report, str(count), victim), "slices of 2 ms"
                )
        with report.step("small kernels"), busy(aggressors, "flood", ms=0.1, depth=32):
            seen = _loop(victim, seconds)
            report.row("1 ms kernels beside 3 with 0.1 ms kernels", show(seen), "", **seen)
        with report.step("stream priorities"):
            spread = victim.ask("prefer", highest=True)["range"]
            for peer in aggressors:
                peer.ask("prefer", highest=False)
            with busy(aggressors, "flood", ms=_FLOOD_MS):
                seen = _loop(victim, seconds)
            what = f"the same beside 3 with 20 ms, priority {spread[1]} over {spread[0]}"
            report.row(what, show(seen), "no help between processes", **seen)


def _loop(peer: Peer, seconds: float) -> dict[str, Any]:
    latency: dict[str, Any] = peer.ask("loop", ms=_KERNEL_MS, at=monotonic() + 0.02, seconds=seconds)["latency"]
    return latency


def _trace(report: Report, name: str, peer: Peer) -> str:
    seen = peer.ask("trace", length_ms=_TRACE_MS, gap_us=_GAP_US)
    report.data(**{f"trace {name}": seen})
    gap, run = seen["gap"], seen["run"]
    period_us = _TRACE_MS * 1e3 / max(seen["looks"], 1)
    return f"{seen['count']} gaps: away p50 {gap['p50']:.2f}, on p50 {run['p50']:.2f} ms; look every {period_us:.2f} us"
