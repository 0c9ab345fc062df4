"""Whether tenants pay for what they took: ``python -m bench.accounting --json F [--quick]``.

Four tenants take turns on one core: in batches of 10 ms, then in batches of 50, then in calls of 200 ms that yield.
Each one's model says itself when it ran, which is the truth that the bill is held against. Between the rounds and in
part of each nobody asks. What tenants paid and what nobody had have to add up to the time that passed.
"""

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from bench import report, turns
from examples.box import Box

_TENANTS: Final = ("a", "b", "c", "d")
_SHARES: Final = (0.1, 0.1, 0.2, 0.4)
_ROUNDS: Final = {"10 ms": (10.0, 0.0), "50 ms": (50.0, 0.0), "200 ms, yielding": (200.0, 0.5)}
_REST_S: Final = 1.0


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """One bedsit, one run."""
    cores = sorted(os.sched_getaffinity(0))
    core, others = cores[-1], set(cores[:-1]) or set(cores)
    with turns.make_box(core) as box:
        for name, share in zip(_TENANTS, _SHARES, strict=True):
            turns.create(box, name, share)
        os.sched_setaffinity(0, others)
        turns.keep_off(box, others)
        rounds = {title: _play(box, *work, 3.0 if quick else 40.0) for title, work in _ROUNDS.items()}
        walls = box.status()["walls"]
        os.sched_setaffinity(0, set(cores))
    return {"rounds": rounds, "walls": walls}


def _play(box: Box, ms: float, step_ms: float, seconds: float) -> dict[str, Any]:
    before, began = _read_bill(box), time.monotonic()
    with ExitStack() as stack:
        until = time.monotonic() + seconds
        drives = [turns.drive(box, name, ms, step_ms, until, stack) for name in _TENANTS]
        true_s = [float((pieces[:, 1] - pieces[:, 0]).sum()) / 1e9 for pieces in (turns.read(*each) for each in drives)]
    time.sleep(_REST_S)
    after, wall_s = _read_bill(box), time.monotonic() - began
    billed = [after[name] - before[name] for name in _TENANTS]
    errors = [bill / true - 1 for bill, true in zip(billed, true_s, strict=True)]
    idle_s = after["idle"] - before["idle"]
    clocked_s = after["wall"] - before["wall"]
    return {
        "true_s": [round(value, 3) for value in true_s],
        "billed_s": [round(value, 3) for value in billed],
        "error_max": round(max(map(abs, errors)), 5),
        "idle_s": round(idle_s, 3),
        "wall_s": round(clocked_s, 3),
        "wall_of_the_bench_s": round(wall_s, 3),
        "sum_error": round((sum(billed) + idle_s) / clocked_s - 1, 5),
    }


def _read_bill(box: Box) -> dict[str, float]:
    """Seconds of the device by tenant, and of nobody, as an operator reads them."""
    rows = {row["tenant"]: row["device_s"] for row in box.json("usage", "--by", "model")}
    (device,) = box.json("usage", "--by", "device")
    return {**{name: rows.get(name, 0.0) for name in _TENANTS}, "idle": device["idle_s"], "wall": device["wall_s"]}


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    rows = [
        [title, sum(each["true_s"]), sum(each["billed_s"]), each["error_max"] * 100, each["sum_error"] * 100]
        for title, each in result["rounds"].items()
    ]
    report.print_table(["batches", "ran s", "billed s", "worst tenant's error %", "tenants + idle - wall %"], rows)


if __name__ == "__main__":
    report.run("accounting", measure, show)
