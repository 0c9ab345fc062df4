"""How long a slot takes to be ready, and a stopped tenant to answer: ``python -m bench.coldstart --json F [--quick]``.

slot_ready      by the daemon's code: cgroup and limits, fork, jail, the check from outside, record, commit
fork_to_ready   the zygote's part of it, until both processes are in their jail; its steps are in steps_ms
straight_line   the floor of that part: the same steps as one straight function (`bench.straight`), in turns
activation      a stopped tenant with the tiny model: started through the admin API, first answer at a new client
fresh           a new interpreter that imports torch, loads the same bundle and calls it once; no walls at all
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bedsit.ipc.client import Client
from bench import report, tiny
from bench.births import Birth, measure_births
from examples.box import Box
from examples.tiny.make import make

_TENANT: Final = "bench"
_FRESH: Final = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy, torch
from safetensors.torch import load_file
from model import build
net = build()
net.load_state_dict(load_file(sys.argv[1] + "/model.safetensors"), assign=True)
with torch.inference_mode():
    assert net(torch.from_numpy(numpy.zeros((1, 64), numpy.float32))).shape == (1, 8)
"""


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """Slots on their own first, then a whole bedsit, then bare interpreters."""
    count = 20 if quick else 100
    with Box({"pool_size": 1}) as box:
        bundle = make(box.folder / "bundle")
        box.read("tenant", "create", _TENANT)
        box.read("model", "deploy", _TENANT, bundle)
        activations = _repeat(count, lambda: _activate(box))
        walls = box.status()["walls"]
        fresh = _repeat(3 if quick else 7, lambda: _start_interpreter(bundle))
        births = measure_births(box.config, box.folder / "births", count)
    return {**_summarise(births, activations), "fresh_interpreter_ms": _median(fresh), "peers": {}, "walls": walls}


def show(result: Mapping[str, Any]) -> None:
    """Print the tables."""
    rows = [[name, result[f"{name}_ms"].get("p50"), result[f"{name}_ms"].get("p99")] for name in _PHASES]
    report.print_table(["ms", "p50", "p99"], [*rows, ["fresh interpreter", result["fresh_interpreter_ms"], None]])
    steps = sorted(result["steps_ms"].items(), key=lambda step: -step[1])
    ratio, cgroup_ms = result["ratio_to_straight_line"], result["cgroup_step_ms"]
    print(f"fork to ready / straight line: {ratio}; into the cgroups: {cgroup_ms} ms")
    print("steps: " + ", ".join(f"{name} {ms:.1f}" for name, ms in steps if ms >= 0.1 and name != "total"))


_PHASES: Final = ("slot_ready", "fork_to_ready", "straight_line", "activation")


def _activate(box: Box) -> float:
    """Milliseconds from the wish to start a stopped tenant to its first answer, with a blank slot in the pool."""
    box.admin.call("tenant.stop", name=_TENANT)
    box.await_pool()
    example = tiny.make_example()
    began = time.perf_counter()
    box.admin.call("tenant.start", name=_TENANT)
    with Client(_TENANT, run_dir=str(box.run_dir)) as client:
        client.infer("tiny", {"x": example})
        return (time.perf_counter() - began) * 1e3


def _start_interpreter(bundle: Path) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-c", _FRESH, bundle], check=True)
    return (time.perf_counter() - began) * 1e3


def _repeat(count: int, once: Callable[[], float]) -> list[float]:
    return [once() for _ in range(count)]


def _summarise(births: Sequence[Birth], activations: Sequence[float]) -> dict[str, Any]:
    names = births[0].steps_ms
    steps = {name: _median([birth.steps_ms[name] for birth in births]) for name in names}
    straight = [birth.straight.ready_ms for birth in births]
    # To be born into a group is a part of the fork, so its price is a difference; joining v1 hierarchies is a step.
    born = _median([birth.straight.clone_ms for birth in births])
    elsewhere = _median([birth.outside.clone_ms for birth in births])
    return {
        "steps_ms": steps,
        "slot_ready_ms": _percentiles([birth.ready_ms for birth in births]),
        "fork_to_ready_ms": _percentiles([birth.steps_ms["total"] for birth in births]),
        "straight_line_ms": _percentiles(straight),
        "ratio_to_straight_line": round(steps["total"] / _median(straight), 3),
        "clone_ms": {"into_group": born, "elsewhere": elsewhere},
        "cgroup_step_ms": round(steps["join_cgroup"] + max(0.0, born - elsewhere), 2),
        "activation_ms": _percentiles(activations),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": round(float(np.percentile(values, percent)), 2) for percent in (50, 99)}


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 2)


if __name__ == "__main__":
    report.run("coldstart", measure, show)
