"""Daemon, router and zygote are restarted under load: ``python -m bench.restarts --json F [--quick]``.

A client of each tenant asks at the pace of a clock, and compares every answer. Every few seconds one process of bedsit
is ended, by SIGTERM or SIGKILL, and whoever watches over it starts the next one. The p99 of the five seconds around
that moment is compared with that of the time before them; the gap is the longest that any of those requests took.
"""

import os
import signal
import statistics
import struct
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from bedsit.ipc.client import Client
from bedsit.ipc.errors import BedsitError
from bench import report, tiny
from bench.processes import end, fork
from examples.box import Box, wait_until
from examples.tiny.make import make

_TENANTS: Final = ("t0", "t1", "t2", "t3")
_PER_S: Final = 50
_AROUND_S: Final = 2.5
_RECOVER_S: Final = 30.0
_FAULTS: Final = {
    "daemon_stopped": ("daemon", signal.SIGTERM),
    "daemon_killed": ("daemon", signal.SIGKILL),
    "router_stopped": ("router", signal.SIGTERM),
    "router_killed": ("router", signal.SIGKILL),
    "zygote_killed": ("zygote", signal.SIGKILL),
}
_RECORD: Final = struct.Struct("<?dd")  # whether it was answered rightly, begin, end


class Request(NamedTuple):
    """One request, by the monotonic clock."""

    is_right: bool
    began_s: float
    ended_s: float


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """Each fault several times, one after the other."""
    rounds, before_s = (1, 2.0) if quick else (5, 5.0)
    out_in, out_out = os.pipe()
    os.set_blocking(out_in, False)
    moments: dict[str, list[float]] = {name: [] for name in _FAULTS}
    raw = bytearray()
    with Box({"pool_size": 1}) as box:
        for tenant in _TENANTS:
            box.read("tenant", "create", tenant)
            box.read("model", "deploy", tenant, make(box.folder / tenant))
        walls = box.status()["walls"]
        pids = [fork(partial(_ask, str(box.run_dir), tenant, out_out)) for tenant in _TENANTS]
        try:
            time.sleep(2.0)
            for _ in range(rounds):
                for name, (who, number) in _FAULTS.items():
                    raw += _wait(before_s + _AROUND_S, out_in)
                    moments[name].append(time.monotonic())
                    _end(box, who, number)
                    raw += _wait(_AROUND_S, out_in)
        finally:
            for pid in pids:
                end(pid)
    requests = [
        Request(*_RECORD.unpack_from(raw, at)) for at in range(0, len(raw) - len(raw) % _RECORD.size, _RECORD.size)
    ]
    figures = {name: _judge(requests, moments[name], before_s) for name in _FAULTS}
    errors = sum(not request.is_right for request in requests)
    return {**figures, "requests": len(requests), "errors": errors, "walls": walls}


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    keys = ("before_p99_ms", "around_p99_ms", "p99_ratio", "gap_ms", "errors")
    report.print_table(["", *keys], [[name, *(result[name][key] for key in keys)] for name in _FAULTS])
    print(f"{result['requests']:,} requests, {result['errors']} errors in all")


def _ask(run_dir: str, tenant: str, out: int) -> None:
    """Ask for ever at the pace of a clock; what comes due meanwhile is asked next, and counts from when it was due."""
    example = tiny.make_example()
    with Client(tenant, run_dir=run_dir) as client:
        expected = client.infer("tiny", {"x": example}).copy()
        due_s = time.monotonic()
        while True:
            due_s += 1 / _PER_S
            time.sleep(max(0.0, due_s - time.monotonic()))
            try:
                answer = client.infer("tiny", {"x": example}, timeout_s=_RECOVER_S)
                is_right = all(np.array_equal(answer[name], expected[name]) for name in expected)
            except BedsitError:
                is_right = False
            os.write(out, _RECORD.pack(is_right, due_s, time.monotonic()))


def _end(box: Box, who: str, number: int) -> None:
    """End it, and wait until the next one is there."""
    before = _find(box, who)
    os.kill(before, number)
    wait_until(lambda: _find(box, who) not in (0, before), _RECOVER_S, f"there is another {who}")


def _find(box: Box, who: str) -> int:
    try:
        status = box.status()
    except BedsitError:
        return 0
    return int((status["pid"] if who == "daemon" else status[who]["pid"]) or 0)


def _wait(seconds: float, out_in: int) -> bytes:
    """What the clients said meanwhile; a pipe that nobody reads would hold them up."""
    said = bytearray()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.1)
        try:
            said += os.read(out_in, 1 << 16)
        except BlockingIOError:
            continue
    return bytes(said)


def _judge(requests: Sequence[Request], moments: Sequence[float], before_s: float) -> dict[str, Any]:
    """Medians over the rounds; the gap and the errors are the worst of them and all of them."""
    before, around, gaps, errors = [], [], [], 0
    for at_s in moments:
        since_s = at_s - _AROUND_S
        calm = [r.ended_s - r.began_s for r in requests if since_s - before_s <= r.began_s < since_s]
        near = [r for r in requests if since_s <= r.began_s < at_s + _AROUND_S]
        before.append(float(np.percentile(calm, 99)) * 1e3)
        around.append(float(np.percentile([r.ended_s - r.began_s for r in near], 99)) * 1e3)
        gaps.append(max(r.ended_s - r.began_s for r in near) * 1e3)
        errors += sum(not r.is_right for r in near)
    ratios = [late / early for early, late in zip(before, around, strict=True)]
    return {
        "before_p99_ms": round(statistics.median(before), 2),
        "around_p99_ms": round(statistics.median(around), 2),
        "p99_ratio": round(statistics.median(ratios), 2),
        "gap_ms": round(max(gaps), 1),
        "errors": errors,
    }


if __name__ == "__main__":
    report.run("restarts", measure, show)
