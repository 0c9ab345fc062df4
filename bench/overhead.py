"""What bedsit adds to a call of a tiny model, beside bare floors: ``python -m bench.overhead --json F [--quick]``."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from bedsit.ipc.client import Client
from bench import report, tiny
from bench.floors import make_floors
from bench.interleave import KEYS, Figures, interleave
from bench.loads import Array, Call
from examples.box import Box
from examples.tiny.make import make

_TENANT: Final = "bench"
_MODEL: Final = "tiny"


class Bedsit:
    """The tiny model of a tenant, called through the client library, with every wall that the machine has."""

    name = "bedsit_zmq"

    def __init__(self, box: Box) -> None:
        self._run_dir = str(box.run_dir)
        router: int = box.status()["router"]["pid"]
        self.router: int | None = router
        self.pids = [router, int(box.tenant(_TENANT)["worker_pid"])]

    def connect(self, number: int) -> Call:
        """A session of its own."""
        del number
        infer = Client(_TENANT, run_dir=self._run_dir).infer

        def call(x: Array) -> Array:
            return infer(_MODEL, {"x": x})["y"]

        return call


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """Start everything, let every target take its turns, stop everything."""
    with ExitStack() as stack:
        box = stack.enter_context(Box({"pool_size": 1}))
        box.read("tenant", "create", _TENANT, "--cpus", os.cpu_count())
        box.read("model", "deploy", _TENANT, make(box.folder / "bundle"))
        # Loaded only now, so that what is forked below shares it and has no thread.
        floors = make_floors(tiny.load())
        for floor in floors:
            stack.callback(floor.stop)
            floor.start()
        figures = interleave([*floors, Bedsit(box)], tiny.make_example(), 0.5 if quick else 2.0)
        return {**_summarise(figures), "walls": box.status()["walls"]}


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    names = [name for name, value in result.items() if isinstance(value, Mapping) and "p50_us" in value]
    report.print_table(["target", *KEYS], [[name, *(result[name][key] for key in KEYS)] for name in names])
    zmq, router = result["zmq_ratio_p50"], result["router_cpu_us_per_request"]["zmq"]
    print(f"bedsit / two ZeroMQ hops: p50 x{zmq:.2f}, requests/s with 16 clients x{result['zmq_ratio_rps_16']:.2f}")
    print(f"router: {router:.1f} us of CPU per request with 16 clients")


def _summarise(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """The report's own keys. What belongs to the packet lane is null as long as there is none."""
    ours, floor = figures[Bedsit.name].times, figures["zmq_two_hop"].times
    return {
        **{name: figure.times for name, figure in figures.items()},
        "bedsit_fast": dict.fromkeys(KEYS),
        "zmq_ratio_p50": round(ours["p50_us"] / floor["p50_us"], 3),
        "zmq_ratio_rps_16": round(ours["rps_16"] / floor["rps_16"], 3),
        "fast_ratio_p50": None,
        "fast_ratio_rps_16": None,
        "fast_over_packet_p50": None,
        "router_cpu_us_per_request": {"zmq": figures[Bedsit.name].router_us, "fast": None},
    }


if __name__ == "__main__":
    report.run("overhead", measure, show)
