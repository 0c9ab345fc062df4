"""A realtime tenant beside batch tenants on the same cores: ``python -m bench.classes --json F [--quick]``.

One client asks the realtime tenant's tiny model fifty times a second. Four tenants of class batch have a model that
burns processor time, and each has a client in a closed loop, so that they would fill the machine by themselves. Rounds
with and without them take turns. No core is set aside: who runs is the kernel's choice, by the tenants' classes.
"""

import os
import statistics
import struct
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.client import Client
from bedsit.ipc.errors import BedsitError
from bench import report, tiny
from bench.processes import end, fork
from examples.box import Box
from examples.tiny.make import make

_REALTIME: Final = "realtime"
_BATCH: Final = ("batch0", "batch1", "batch2", "batch3")
_BUNDLE: Final = Path(__file__).parent / "burner/bundle"
_PER_S: Final = 50
_BURN_MS: Final = 20.0
_COUNTS: Final = struct.Struct("<QQ")


class Round(NamedTuple):
    """Latencies in nanoseconds, the client's errors, and what the batch tenants got meanwhile."""

    latencies: NDArray[np.int64]
    errors: int
    batch_answers: int
    batch_errors: int
    batch_cpus: float


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """Start a bedsit with all tenants, and let rounds alone and beside the batch tenants take turns."""
    seconds, rounds = (3.0, 2) if quick else (10.0, 5)
    with Box({"pool_size": 1}) as box:
        box.read("tenant", "create", _REALTIME, "--class", "realtime")
        box.read("model", "deploy", _REALTIME, make(box.folder / "tiny"))
        for tenant in _BATCH:
            box.read("tenant", "create", tenant, "--class", "batch", "--cpus", os.cpu_count())
            box.read("model", "deploy", tenant, _BUNDLE)
        alone: list[Round] = []
        beside: list[Round] = []
        for number in range(rounds):
            for is_beside in (False, True) if number % 2 == 0 else (True, False):
                (beside if is_beside else alone).append(_run(box, seconds, beside=is_beside))
        walls = box.status()["walls"]
    return {"realtime": _compare(alone, beside), "batch": _sum_up(beside), "walls": walls}


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    realtime, batch = result["realtime"], result["batch"]
    rows = [[name, realtime[f"{name}_p50_ms"], realtime[f"{name}_p99_ms"]] for name in ("alone", "beside")]
    report.print_table(["realtime", "p50 ms", "p99 ms"], rows)
    print(f"beside / alone: p99 x{realtime['p99_ratio']}; {realtime['errors']} errors")
    print(f"batch: {batch['answers']:,} answers, {batch['errors']} errors, {batch['cpus']} of the processors' time")


def _run(box: Box, seconds: float, *, beside: bool) -> Round:
    """One round; the batch tenants are at it before the realtime one is asked."""
    run_dir = str(box.run_dir)
    pids: list[int] = []
    counts_in, counts_out = os.pipe()
    before = _read_cpu(box)
    began = time.monotonic()
    try:
        pids += [fork(partial(_burn, run_dir, tenant, seconds + 1.0, counts_out)) for tenant in _BATCH if beside]
        os.close(counts_out)
        time.sleep(0.5)
        latencies, errors = _ask(run_dir, seconds)
        with os.fdopen(counts_in, "rb") as file:
            raw = file.read()
    finally:
        for pid in pids:
            end(pid)
    counts = [_COUNTS.unpack_from(raw, at) for at in range(0, len(raw), _COUNTS.size)]
    cpus = (_read_cpu(box) - before) / (time.monotonic() - began)
    return Round(latencies, errors, sum(right for right, _ in counts), sum(wrong for _, wrong in counts), cpus)


def _ask(run_dir: str, seconds: float) -> tuple[NDArray[np.int64], int]:
    """Ask at the pace of a clock: a late answer does not put off the next question's time."""
    example = tiny.make_example()
    took: list[int] = []
    errors = 0
    with Client(_REALTIME, run_dir=run_dir) as client:
        for _ in range(20):
            client.infer("tiny", {"x": example})
        due = time.monotonic()
        for _ in range(int(seconds * _PER_S)):
            due += 1 / _PER_S
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.perf_counter_ns()
            try:
                client.infer("tiny", {"x": example})
            except BedsitError:
                errors += 1
            took.append(time.perf_counter_ns() - began)
    return np.array(took, np.int64), errors


def _burn(run_dir: str, tenant: str, seconds: float, out: int) -> None:
    """Ask a batch tenant in a closed loop, and say what came of it."""
    x = np.array([_BURN_MS], np.float32)
    answers = errors = 0
    until = time.monotonic() + seconds
    with Client(tenant, run_dir=run_dir) as client:
        while time.monotonic() < until:
            try:
                client.infer("burner", {"ms": x}, timeout_s=60)
                answers += 1
            except BedsitError:
                errors += 1
    os.write(out, _COUNTS.pack(answers, errors))


def _read_cpu(box: Box) -> float:
    """Seconds of processor time that the batch tenants' slots have used, as their cgroups count them."""
    return sum(row["cpu_seconds"] or 0.0 for row in box.admin.call("ps") if row["tenant"] in _BATCH)


def _compare(alone: list[Round], beside: list[Round]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, rounds in (("alone", alone), ("beside", beside)):
        for percent in (50, 99):
            values = [float(np.percentile(each.latencies, percent)) / 1e6 for each in rounds]
            figures[f"{name}_p{percent}_ms"] = round(statistics.median(values), 3)
    figures["p99_ratio"] = round(figures["beside_p99_ms"] / figures["alone_p99_ms"], 3)
    figures["errors"] = sum(each.errors for each in (*alone, *beside))
    return figures


def _sum_up(rounds: list[Round]) -> dict[str, Any]:
    return {
        "answers": sum(each.batch_answers for each in rounds),
        "errors": sum(each.batch_errors for each in rounds),
        "cpus": round(statistics.mean(each.batch_cpus for each in rounds), 2),
    }


if __name__ == "__main__":
    report.run("classes", measure, show)
