"""How long a slot takes to be ready, and a parked tenant to answer: ``python -m bench.coldstart --json F [--quick]``.

slot_ready      by the daemon's code: cgroup and limits, fork, jail, the check from outside, record, commit
fork_to_ready   the zygote's part of it, until both processes are in their jail; its steps are in steps_ms
straight_line   the floor of that part: the same steps as one straight function (`bench.straight`), in turns
activation      a tenant that was scaled to zero, with the tiny model: from a request to its answer
fresh           a new interpreter that imports torch, loads the same bundle and calls it once; no walls at all
peers           from nothing to the first answer of the same model (`bench.peers`); a quick run starts what is installed
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bedsit.ipc.client import Client
from bench import report, tiny
from bench.births import Birth, measure_births
from bench.peers import WORK, find
from bench.rivals.contender import Contender
from bench.rivals.figures import make_cases
from examples.box import Box
from examples.tiny.make import make

_TENANT: Final = "bench"
_RESIDENCE_S: Final = 0.05
_PEERS: Final = ("litserve", "mlserver", "triton")
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
    with Box({"pool_size": 1, "residence_s": _RESIDENCE_S}) as box:
        bundle = make(box.folder / "bundle")
        box.admin.call("tenant.create", name=_TENANT, min_slots=0)
        box.read("model", "deploy", _TENANT, bundle)
        with Client(_TENANT, run_dir=str(box.run_dir)) as client:
            activations = _repeat(count, lambda: _activate(box, client))
        walls = box.status()["walls"]
        fresh = _repeat(3 if quick else 7, lambda: _start_interpreter(bundle))
        births = measure_births(box.config, box.folder / "births", count)
    peers = _ask_peers(quick=quick)
    return {**_summarise(births, activations), "fresh_interpreter_ms": _median(fresh), "peers": peers, "walls": walls}


def show(result: Mapping[str, Any]) -> None:
    """Print the tables."""
    rows = [[name, result[f"{name}_ms"].get("p50"), result[f"{name}_ms"].get("p99")] for name in _PHASES]
    report.print_table(["ms", "p50", "p99"], [*rows, ["fresh interpreter", result["fresh_interpreter_ms"], None]])
    steps = sorted(result["steps_ms"].items(), key=lambda step: -step[1])
    ratio, cgroup_ms = result["ratio_to_straight_line"], result["cgroup_step_ms"]
    print(f"fork to ready / straight line: {ratio}; into the cgroups: {cgroup_ms} ms")
    peers = result["peers"]
    print("first answer of others, ms: " + ", ".join(f"{name} {value}" for name, value in peers.items()))
    print("steps: " + ", ".join(f"{name} {ms:.1f}" for name, ms in steps if ms >= 0.1 and name != "total"))


_PHASES: Final = ("slot_ready", "fork_to_ready", "straight_line", "activation")


def _activate(box: Box, client: Client) -> float:
    """Milliseconds from a request to its answer, when the tenant has no slot and the pool a blank one."""
    time.sleep(2 * _RESIDENCE_S)  # one that has just come is not parked
    box.admin.call("tenant.park", name=_TENANT)
    box.await_pool()
    example = tiny.make_example()
    began = time.perf_counter()
    client.infer("tiny", {"x": example})
    return (time.perf_counter() - began) * 1e3


def _ask_peers(*, quick: bool) -> dict[str, float | str]:
    """Milliseconds that others need until the same model answers, or why that is not known."""
    case = make_cases().tiny
    found: dict[str, float | str] = {}
    for name in _PEERS:
        contender = Contender(name)
        contender.attempt(partial(find, contender, WORK, install=not quick))
        for _ in range(1 if quick else 3):
            contender.attempt(partial(contender.measure_first_answer, case))
        times = contender.first_answers_s
        found[name] = contender.error or _median([seconds * 1e3 for seconds in times])
    return found


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
