"""What many tenants cost: ``python -m bench.scale --json F [--quick]``.

One tenant is asked by closed loops; beside it there are ever more registered tenants, some with live slots and an idle
session each. The router's CPU time per request should not notice. Also: tenants created a second, how long ``ps``
takes, and what the processes weigh then.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bedsit.ipc.client import Client
from bench import report, tiny
from bench.loads import Array, Call, drive
from examples.box import Box
from examples.tiny.make import make

_BUSY: Final = "t0"
_CLIENTS: Final = 16
_ROUNDS: Final = 3


class _Busy:
    """The tiny model of the one tenant that is asked."""

    name = "busy"

    def __init__(self, box: Box) -> None:
        self._run_dir = str(box.run_dir)
        router: int = box.status()["router"]["pid"]
        self.router: int | None = router
        self.pids = [router, int(box.tenant(_BUSY)["worker_pid"])]

    def connect(self, number: int) -> Call:
        """A session of its own."""
        del number
        infer = Client(_BUSY, run_dir=self._run_dir).infer

        def call(x: Array) -> Array:
            y: Array = infer("tiny", {"x": x})["y"]
            return y

        return call


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """One bedsit that fills up."""
    counts, live = ((1, 20, 60), 8) if quick else ((1, 100, 1000), 100)
    seconds = 1.0 if quick else 2.0
    cost: dict[str, float] = {}
    with Box({"pool_size": 2, "max_slots": 2 * live}) as box, ExitStack() as idle:
        available_mib = _read_available_mib()
        bundle = make(box.folder / "bundle")
        tenants, created_s = 0, 0.0
        for count in counts:
            while tenants < count:
                began = time.monotonic()
                box.admin.call("tenant.create", name=f"t{tenants}")
                created_s += time.monotonic() - began
                if tenants < live:
                    box.read("model", "deploy", f"t{tenants}", bundle)
                    _sit(box, f"t{tenants}", idle)
                tenants += 1
            target = _Busy(box)
            runs = [drive(target, _CLIENTS, seconds, tiny.make_example()) for _ in range(_ROUNDS)]
            cost[str(count)] = round(statistics.median(r.router_ns / 1e3 / len(r.latencies) for r in runs), 2)
        ps_ms = statistics.median(_time(lambda: box.admin.call("ps")) for _ in range(5))
        ps_command_ms = statistics.median(_time(lambda: box.read("ps")) for _ in range(5))
        slots = [row for row in box.admin.call("ps") if row["tenant"]]
        status = box.status()
        sizes = {
            "daemon": _read_rss(status["pid"]),
            "router": _read_rss(status["router"]["pid"]),
            "zygote": _read_rss(status["zygote"]["pid"]),
        }
        first, last = cost[str(counts[0])], cost[str(counts[-1])]
        return {
            "router_cpu_us_per_request": cost,
            "ratio_most_to_one": round(last / first, 3),
            "live_slots": len(slots),
            "create_per_s": round(tenants / created_s, 1),
            "ps_ms": round(ps_ms, 1),
            "ps_command_ms": round(ps_command_ms, 1),
            "mem_available_drop_mib": round(available_mib - _read_available_mib()),
            "rss_mib": sizes,
            "walls": status["walls"],
        }


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    rows = [[count, cost] for count, cost in result["router_cpu_us_per_request"].items()]
    report.print_table(["tenants", "router us/request"], rows)
    sizes = ", ".join(f"{name} {size:.0f}" for name, size in result["rss_mib"].items())
    print(f"most / one: x{result['ratio_most_to_one']:.2f} with {result['live_slots']} live slots; RSS MiB: {sizes}")
    print(
        f"{result['create_per_s']:.0f} tenants created a second; ps takes {result['ps_ms']:.0f} ms, "
        f"as a command {result['ps_command_ms']:.0f}; the box has {result['mem_available_drop_mib']} MiB less"
    )


def _sit(box: Box, tenant: str, idle: ExitStack) -> None:
    """An idle session that has been used once."""
    client = idle.enter_context(Client(tenant, run_dir=str(box.run_dir)))
    client.infer("tiny", {"x": tiny.make_example()})


def _time(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def _read_available_mib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not say how much memory is available")


def _read_rss(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)


if __name__ == "__main__":
    report.run("scale", measure, show)
