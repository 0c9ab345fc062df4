"""Bursty tenants on one box, and each with a part of it to itself: ``python -m bench.utilisation --json F [--quick]``.

The same recorded arrivals (`bench.traces`), models and processors, twice: once as tenants of a box who may each use all
of it, and once as dedicated servers, each held to its part. Both are bedsit, so that nothing but the sharing differs. A
request has a second; useful is the processor time of those answered within it, as a part of all the time that the
processors had from the first arrival to the last answer.
"""

import asyncio
import os
import struct
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from bedsit.ipc.aclient import AsyncClient
from bedsit.ipc.errors import BedsitError
from bench import report
from bench.processes import end, fork
from bench.traces import Arrival, read_trace
from examples.box import Box

_TRACE: Final = "bursty20"
_BUNDLE: Final = Path(__file__).parent / "models/spin/bundle"
_TIMEOUT_S: Final = 1.0
_RECORD: Final = struct.Struct("<dd")  # latency in ms, and the work in ms where it was answered in time, else 0


class Outcome(NamedTuple):
    """Latencies in ms, useful work and wall time in seconds, and how many were too late or refused."""

    latencies: Sequence[float]
    useful_s: float
    wall_s: float
    late: int


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """The same arrivals twice."""
    trace = read_trace(_TRACE)
    if quick:
        trace = {tenant: [each for each in arrivals if each.at_s < 10] for tenant, arrivals in trace.items()}
    cores = len(os.sched_getaffinity(0))
    figures, walls = {}, {}
    for name, cpus in (("shared", float(cores)), ("dedicated", cores / len(trace))):
        with Box({"pool_size": 1}) as box:
            for tenant in trace:
                box.admin.call("tenant.create", name=f"t{tenant}", cpus=cpus, memory_bytes=256 << 20)
                box.read("model", "deploy", f"t{tenant}", _BUNDLE)
            walls = box.status()["walls"]
            figures[name] = _sum_up(_replay(box, trace), cores)
    return {**figures, "tenants": len(trace), "trace": _TRACE, "walls": walls}


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    keys = ("useful_cpu", "p50_ms", "p99_ms", "late", "requests")
    report.print_table(["", *keys], [[name, *(result[name][key] for key in keys)] for name in ("shared", "dedicated")])


def _replay(box: Box, trace: Mapping[int, Sequence[Arrival]]) -> Outcome:
    out_in, out_out = os.pipe()
    begin_s = time.monotonic() + 1.0
    pids = [
        fork(partial(_drive, str(box.run_dir), tenant, arrivals, begin_s, out_out))
        for tenant, arrivals in trace.items()
    ]
    os.close(out_out)
    try:
        with os.fdopen(out_in, "rb") as file:
            raw = file.read()
    finally:
        for pid in pids:
            end(pid)
    records = [_RECORD.unpack_from(raw, at) for at in range(0, len(raw), _RECORD.size)]
    if len(records) != sum(map(len, trace.values())):
        raise RuntimeError("a client failed; its words are above")
    useful_s = sum(work for _, work in records) / 1e3
    late = sum(work == 0 for _, work in records)
    return Outcome([latency for latency, _ in records], useful_s, time.monotonic() - begin_s, late)


def _drive(run_dir: str, tenant: int, arrivals: Sequence[Arrival], begin_s: float, out: int) -> None:
    records = asyncio.run(_send_all(run_dir, f"t{tenant}", arrivals, begin_s))
    for at in range(0, len(records), 100):
        os.write(out, b"".join(_RECORD.pack(*record) for record in records[at : at + 100]))


async def _send_all(
    run_dir: str, tenant: str, arrivals: Sequence[Arrival], begin_s: float
) -> list[tuple[float, float]]:
    async with AsyncClient(tenant, run_dir=run_dir) as client:
        tasks = [asyncio.create_task(_send(client, arrival, begin_s)) for arrival in arrivals]
        return list(await asyncio.gather(*tasks))


async def _send(client: AsyncClient, arrival: Arrival, begin_s: float) -> tuple[float, float]:
    due_s = begin_s + arrival.at_s
    await asyncio.sleep(max(0.0, due_s - time.monotonic()))
    try:
        await client.infer("spin", {"ms": np.array([arrival.work_ms], np.float32)}, timeout_s=_TIMEOUT_S)
    except BedsitError:
        return _TIMEOUT_S * 1e3, 0.0
    took_ms = (time.monotonic() - due_s) * 1e3
    return took_ms, arrival.work_ms if took_ms <= _TIMEOUT_S * 1e3 else 0.0


def _sum_up(outcome: Outcome, cores: int) -> dict[str, Any]:
    return {
        "useful_cpu": round(outcome.useful_s / (outcome.wall_s * cores), 3),
        "p50_ms": round(float(np.percentile(outcome.latencies, 50)), 1),
        "p99_ms": round(float(np.percentile(outcome.latencies, 99)), 1),
        "late": outcome.late,
        "requests": len(outcome.latencies),
    }


if __name__ == "__main__":
    report.run("utilisation", measure, show)
