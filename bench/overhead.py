"""What bedsit adds to a call of a tiny model, beside bare floors: ``python -m bench.overhead --json F [--quick]``."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from bedsit.ipc.client import Client
from bedsit.ipc.lane import LaneName
from bench import report, tiny
from bench.floors import make_floors
from bench.interleave import KEYS, Figures, interleave
from bench.loads import Array, Call, Target
from examples.box import Box
from examples.tiny.make import make

_TENANT: Final = "bench"
_MODEL: Final = "tiny"
# Limits that nobody reaches, so that what they cost is in the figures: fair queue, rate, concurrency, room.
_LIMITS: Final = ("--rate", "1000000", "--burst", "100000", "--concurrency", "1000", "--queue-bytes", "64MiB")


class Bedsit:
    """The tiny model of a tenant, called through the client library, with every wall that the machine has."""

    def __init__(self, box: Box, lane: LaneName) -> None:
        self.name = f"bedsit_{lane}"
        self._lane: LaneName = lane
        self._run_dir = str(box.run_dir)
        router: int = box.status()["router"]["pid"]
        self.router: int | None = router
        self.pids = [router, int(box.tenant(_TENANT)["worker_pid"])]

    def connect(self, number: int) -> Call:
        """A session of its own."""
        del number
        infer = Client(_TENANT, run_dir=self._run_dir, lane=self._lane).infer

        def call(x: Array) -> Array:
            y: Array = infer(_MODEL, {"x": x})["y"]
            return y

        return call


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """Start everything, let every target take its turns, stop everything."""
    with ExitStack() as stack:
        box = stack.enter_context(Box({"pool_size": 1}))
        box.read("tenant", "create", _TENANT, "--cpus", os.cpu_count(), *_LIMITS)
        box.read("model", "deploy", _TENANT, make(box.folder / "bundle"))
        # Loaded only now, so that what is forked below shares it and has no thread.
        floors = make_floors(tiny.load())
        for floor in floors:
            stack.callback(floor.stop)
            floor.start()
        targets: list[Target] = [*floors, Bedsit(box, "zmq"), Bedsit(box, "fast")]
        figures = interleave(targets, tiny.make_example(), 0.5 if quick else 2.0)
        return {**_summarise(figures), "walls": box.status()["walls"]}


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    names = [name for name, value in result.items() if isinstance(value, Mapping) and "p50_us" in value]
    report.print_table(["target", *KEYS], [[name, *(result[name][key] for key in KEYS)] for name in names])
    for lane in ("zmq", "fast"):
        p50, rps = result[f"{lane}_ratio_p50"], result[f"{lane}_ratio_rps_16"]
        print(f"{lane} lane / two ZeroMQ hops: p50 x{p50:.2f}, requests/s with 16 clients x{rps:.2f}")
    print(f"fast lane / bare packet router: p50 x{result['fast_over_packet_p50']:.2f}")
    pinned = ", ".join(f"{key} x{value:.2f}" for key, value in result["one_core"].items())
    print(f"the same with everything on one core: {pinned}")
    routers = ", ".join(f"{name} {us:.1f}" for name, us in result["router_cpu_us_per_request"].items())
    print(f"router, us of CPU per request with 16 clients: {routers}")


def _summarise(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """The report's own keys."""
    times = {name: figure.times for name, figure in figures.items()}
    zmq, fast, broker, packet = (times[n] for n in ("bedsit_zmq", "bedsit_fast", "zmq_two_hop", "packet_two_hop"))
    return {
        **times,
        "zmq_ratio_p50": _divide(zmq, broker, "p50_us"),
        "zmq_ratio_rps_16": _divide(zmq, broker, "rps_16"),
        "fast_ratio_p50": _divide(fast, broker, "p50_us"),
        "fast_ratio_rps_16": _divide(fast, broker, "rps_16"),
        "fast_over_packet_p50": _divide(fast, packet, "p50_us"),
        "one_core": {
            "zmq_ratio_p50": _divide(zmq, broker, "one_core_p50_us"),
            "fast_ratio_p50": _divide(fast, broker, "one_core_p50_us"),
            "fast_over_packet_p50": _divide(fast, packet, "one_core_p50_us"),
        },
        "router_cpu_us_per_request": {
            "zmq": figures["bedsit_zmq"].router_us,
            "fast": figures["bedsit_fast"].router_us,
            "zmq_broker": figures["zmq_two_hop"].router_us,
            "packet_router": figures["packet_two_hop"].router_us,
        },
    }


def _divide(ours: Mapping[str, float], theirs: Mapping[str, float], key: str) -> float:
    return round(ours[key] / theirs[key], 3)


if __name__ == "__main__":
    report.run("overhead", measure, show)
