"""What one more tenant takes in memory: ``python -m bench.density --json F [--quick]``.

pss            of every process of a bedsit, daemon and router included, whose tenants each answered 100 requests of the
               tiny model; pages that several processes map count a part in each (proc_pid_smaps(5))
mem available  how much less the kernel calls available than before that bedsit started: page tables, sockets and groups
               are in this figure too, and whatever else the machine does meanwhile
per tenant     the slope of pss over the tenants after the first
fresh          one more new interpreter that loads the same bundle and answers the same requests, no walls at all
"""

import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from bedsit.ipc.client import Client
from bench import report, tiny
from examples.box import Box
from examples.tiny.make import make

_REQUESTS: Final = 100
_FRESH: Final = f"""
import sys
sys.path.insert(0, sys.argv[1])
import numpy, torch
from safetensors.torch import load_file
from model import build
torch.set_num_threads(1)
net = build()
net.load_state_dict(load_file(sys.argv[1] + "/model.safetensors"), assign=True)
with torch.inference_mode():
    for _ in range({_REQUESTS}):
        net(torch.from_numpy(numpy.zeros((1, 64), numpy.float32)))
print("ready", flush=True)
sys.stdin.read()
"""
_DEADLINE_S: Final = 60.0
_SETTLED_MIB: Final = 0.25


class Reading(NamedTuple):
    """A bedsit with *tenants*, in MiB: all its processes together, and what a slot's two have for themselves."""

    tenants: int
    pss: float
    drop: float
    private: dict[str, float]
    tables: dict[str, float]
    walls: dict[str, str]


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """Bedsits that fill up with tenants, then bare interpreters."""
    counts = (1, 4, 8) if quick else (1, 8, 32)
    rounds = [_fill(counts) for _ in range(1 if quick else 3)]
    fresh = _measure_fresh(3 if quick else 5)
    return {**_summarise(list(zip(*rounds, strict=True))), "fresh_process_mib": fresh}


def show(result: Mapping[str, Any]) -> None:
    """Print the tables."""
    rows = zip(result["tenants"], result["pss_mib"], result["mem_available_drop_mib"], strict=True)
    report.print_table(["tenants", "PSS MiB", "MemAvailable drop MiB"], [list(row) for row in rows])
    kinds = ("init", "worker")
    head = ["of one slot", "private MiB", "page tables MiB"]
    report.print_table(head, [[kind, result["private_mib"][kind], result["page_tables_mib"][kind]] for kind in kinds])
    print(f"one more tenant: {result['per_tenant_mib']:.1f} MiB; fresh process: {result['fresh_process_mib']:.0f} MiB")


def _fill(counts: Sequence[int]) -> list[Reading]:
    """One bedsit, read whenever it has as many tenants as *counts* says."""
    readings = []
    before = _read_available()
    with Box({"pool_size": 1}) as box:
        bundle = make(box.folder / "bundle")
        tenants = 0
        for count in counts:
            while tenants < count:
                _add_tenant(box, f"t{tenants}", bundle)
                tenants += 1
            box.await_pool()
            readings.append(_read(box, tenants, before))
    return readings


def _add_tenant(box: Box, name: str, bundle: Path) -> None:
    box.read("tenant", "create", name)
    box.read("model", "deploy", name, bundle)
    example = tiny.make_example()
    with Client(name, run_dir=str(box.run_dir)) as client:
        for _ in range(_REQUESTS):
            client.infer("tiny", {"x": example})


def _read(box: Box, tenants: int, available_before: float) -> Reading:
    """Read when nothing moves any more: sessions end and slots begin a little after they are told to."""
    pids = _find_pids(box)
    deadline = time.monotonic() + _DEADLINE_S
    pss, last = _sum_pss(pids), 0.0
    while abs(pss - last) > _SETTLED_MIB and time.monotonic() < deadline:
        time.sleep(0.2)
        pss, last = _sum_pss(pids), pss
    drop = available_before - _read_available()
    slots = [row for row in box.admin.call("ps") if row["tenant"]]
    by_kind = {kind: [row[f"{kind}_pid"] for row in slots] for kind in ("init", "worker")}
    return Reading(
        tenants,
        pss,
        drop,
        {
            kind: _median(_read_field(pid, "smaps_rollup", "Private_Dirty") for pid in pids)
            for kind, pids in by_kind.items()
        },
        {kind: _median(_read_field(pid, "status", "VmPTE") for pid in pids) for kind, pids in by_kind.items()},
        box.status()["walls"],
    )


def _find_pids(box: Box) -> list[int]:
    """Every process of the box: keeper, daemon, router, zygote, and init and worker of each slot."""
    status = box.status()
    keeper = int(Path(f"/proc/{status['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    slots = [row[f"{kind}_pid"] for row in box.admin.call("ps") for kind in ("init", "worker")]
    return [keeper, status["pid"], status["router"]["pid"], status["zygote"]["pid"], *slots]


def _measure_fresh(count: int) -> float:
    """What each further one of *count* interpreters adds to the PSS of all."""
    sums = []
    with ExitStack() as stack:
        bundle = make(Path(stack.enter_context(TemporaryDirectory(prefix="bench-"))))
        pids: list[int] = []
        for _ in range(count):
            pids.append(_start_fresh(bundle, stack))
            sums.append(_sum_pss(pids))
    return round((sums[-1] - sums[0]) / (count - 1), 2)


def _start_fresh(bundle: Path, stack: ExitStack) -> int:
    argv = [sys.executable, "-I", "-c", _FRESH, str(bundle)]
    process = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    if process.stdin is not None:
        stack.callback(process.stdin.close)
    if (
        process.stdout is None
        or not select.select([process.stdout], [], [], _DEADLINE_S)[0]
        or not os.read(process.stdout.fileno(), 16)
    ):
        raise RuntimeError("a fresh interpreter has not answered")
    return process.pid


def _summarise(readings: Sequence[Sequence[Reading]]) -> dict[str, Any]:
    """Medians over the rounds."""
    tenants = [same[0].tenants for same in readings]
    pss = [_median(reading.pss for reading in same) for same in readings]
    full = readings[-1]
    return {
        "tenants": tenants,
        "pss_mib": pss,
        "mem_available_drop_mib": [_median(reading.drop for reading in same) for same in readings],
        "per_tenant_mib": round((pss[-1] - pss[0]) / (tenants[-1] - tenants[0]), 2),
        "private_mib": {kind: _median(reading.private[kind] for reading in full) for kind in full[0].private},
        "page_tables_mib": {kind: _median(reading.tables[kind] for reading in full) for kind in full[0].tables},
        "walls": full[-1].walls,
    }


def _sum_pss(pids: Iterable[int]) -> float:
    return sum(_read_field(pid, "smaps_rollup", "Pss") for pid in pids)


def _read_available() -> float:
    return _read_kib(Path("/proc/meminfo"), "MemAvailable")


def _read_field(pid: int, file: str, name: str) -> float:
    return _read_kib(Path(f"/proc/{pid}/{file}"), name)


def _read_kib(file: Path, name: str) -> float:
    """A field of *file* in MiB. Raises RuntimeError."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{file} has no {name}")


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 2)


if __name__ == "__main__":
    report.run("density", measure, show)
