"""Equal processes that share the GPU by the driver's slices: what each sees, and what is lost together."""

from contextlib import ExitStack
from time import monotonic
from typing import Final

from tests.gpu.figures import merge, show
from tests.gpu.peer import Peer
from tests.gpu.report import Report

_MOST: Final = 8
#: ms of a kernel, and how long to look.
_PHASES: Final = ((1.0, 0.8), (20.0, 1.2))
_WORK_KEPT: Final = 0.93


def check(report: Report) -> None:
    """1, 2, 4 and 8 processes that launch and wait."""
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer("worker:compute")) for _ in range(_MOST)]
        rounds = peers[0].ask("open")["rounds_per_ms"]
        for peer in peers[1:]:
            peer.tell("open", rounds_per_ms=rounds)
        opened = [peer.hear()["open_ms"] for peer in peers[1:]]
        report.row(f"{_MOST - 1} contexts opened at once", f"{max(opened):.0f} ms the slowest", "", opened_ms=opened)
        for ms, seconds in _PHASES:
            alone = 0.0
            for count in (1, 2, 4, _MOST):
                with report.step(f"{count} with {ms:g} ms kernels"):
                    at = monotonic() + 0.05
                    for peer in peers[:count]:
                        peer.tell("loop", ms=ms, at=at, seconds=max(0.4, seconds * report.scale))
                    answers = [peer.hear() for peer in peers[:count]]
                    latency = merge([answer["latency"] for answer in answers])
                    # A process that is late with its last kernel had the GPU that long.
                    work = sum(answer["done"] * ms / answer["wall_s"] for answer in answers) / 1e3
                    alone = alone or work
                    times = latency["p50"] / ms / count
                    kept = work / alone
                    report.row(
                        f"{count} with {ms:g} ms kernels",
                        f"{show(latency)}, {latency['p50'] / ms:.2f} x, work {kept:.1%}",
                        f"{count} x, work >= 93 % of 1",
                        0.7 <= times <= 1.5 and kept >= _WORK_KEPT,
                        latency=latency,
                        work=work,
                        each=[answer["done"] for answer in answers],
                    )
