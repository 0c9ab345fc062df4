"""Who gets how much where not everybody can run: ``python -m bench.fairness --json F [--quick]``.

queue   one batch at a time on this box. Eight tenants with weights 1, 2 and 4 ask without end, half of them for 5 ms of
        work at a time, half for 50: shares of the time that their own models say they ran, divided by weight, as Jain's
        index (1 is perfect). Meanwhile a ninth tenant, idle for a second each time, asks for 1 ms: how long it waits
        beyond that, beside the longest batch of the others.
device  the same on a time-sliced core, where the next batch waits at its worker for its turn: `bench.turns` says what
"""

import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from bedsit.ipc.client import Client
from bedsit.ipc.errors import BedsitError
from bench import report, turns
from bench.processes import end, fork, reap
from examples.box import Box

_BUNDLE: Final = Path(__file__).parent / "burner/bundle"
_WEIGHTS: Final = (1, 1, 2, 2, 4, 4, 1, 2)
_MS: Final = (5.0, 50.0, 5.0, 50.0, 5.0, 50.0, 50.0, 5.0)  # ten times apart
_LONE: Final = "lone"
_LONE_MS: Final = 1.0
_LONE_EVERY_S: Final = 1.0  # long enough for everybody else to have had a turn: who asks more often is not idle
_OUTSTANDING: Final = 3  # requests that each tenant always has waiting
_WARM_S: Final = 2.0


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """One bedsit, one run."""
    seconds = 8.0 if quick else 60.0
    with Box({"pool_size": 1, "parallel": 1}) as box, ExitStack() as stack:
        names = [f"t{index}" for index in range(len(_WEIGHTS))]
        for name, weight in [*zip(names, _WEIGHTS, strict=True), (_LONE, 1)]:
            box.read("tenant", "create", name, "--weight", weight, "--cpus", 1)
            box.read("model", "deploy", name, _BUNDLE)
        started = time.monotonic()
        window = (started + _WARM_S, started + _WARM_S + seconds)
        readers = [_start(box, name, ms, window, stack) for name, ms in zip(names, _MS, strict=True)]
        waits, longest_lone = _ask_alone(box, window)
        took = [_read(fd, pid) for fd, pid in readers]
        walls = box.status()["walls"]
    device = turns.measure(quick)
    device.pop("walls")
    shares = [sum(each) for each in took]
    return {
        "queue": {
            "jain": round(turns.jain([share / weight for share, weight in zip(shares, _WEIGHTS, strict=True)]), 4),
            "weights": list(_WEIGHTS),
            "service_ms": list(_MS),
            "shares": [round(share / sum(shares), 4) for share in shares],
            "busy": round(sum(shares) / 1e3 / seconds, 3),
            "lone_wait_ms": round(max(waits), 2),
            "lone_wait_p50_ms": round(float(np.median(waits)), 2),
            "lone_samples": len(waits),
            "lone_service_max_ms": round(longest_lone, 2),
            "batch_max_ms": round(max(max(each) for each in took), 2),
        },
        "device": device,
        "walls": walls,
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    queue = result["queue"]
    rows = [
        [f"t{index}", weight, ms, share, weight / sum(queue["weights"])]
        for index, (weight, ms, share) in enumerate(
            zip(queue["weights"], queue["service_ms"], queue["shares"], strict=True)
        )
    ]
    report.print_table(["tenant", "weight", "batch ms", "share", "by weight"], rows)
    print(f"Jain's index of share / weight: {queue['jain']:.4f}; busy {queue['busy']:.0%} of the time")
    print(
        f"a lone request waits {queue['lone_wait_p50_ms']:.1f} ms (p50), {queue['lone_wait_ms']:.1f} ms (the longest "
        f"of {queue['lone_samples']}), beside batches of up to {queue['batch_max_ms']:.1f} ms"
    )
    for line in turns.summarise(result["device"]):
        print(line)


def _start(box: Box, name: str, ms: float, window: tuple[float, float], stack: ExitStack) -> tuple[int, int]:
    """A process that asks for one tenant without end; gives where its times can be read, and its pid."""
    result_in, result_out = os.pipe()

    def work() -> None:
        os.close(result_in)
        times: list[float] = []
        with Client(name, run_dir=str(box.run_dir)) as client:
            threads = [threading.Thread(target=_loop, args=(client, ms, window, times)) for _ in range(_OUTSTANDING)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        with os.fdopen(result_out, "wb") as file:
            file.write(np.array(times, np.float64).tobytes())

    pid = fork(work)
    os.close(result_out)
    stack.callback(end, pid)
    return result_in, pid


def _loop(client: Client, ms: float, window: tuple[float, float], times: list[float]) -> None:
    x = {"ms": np.array([ms], np.float32)}
    while time.monotonic() < window[1]:
        took = float(client.infer("burner", x, timeout_s=60)["took_ms"][0])
        if window[0] <= time.monotonic() < window[1]:
            times.append(took)


def _ask_alone(box: Box, window: tuple[float, float]) -> tuple[list[float], float]:
    """How long requests of an idle tenant wait beyond their own work, and the longest that this was."""
    waits, longest = [], 0.0
    x = {"ms": np.array([_LONE_MS], np.float32)}
    with Client(_LONE, run_dir=str(box.run_dir)) as client:
        while time.monotonic() < window[1]:
            began = time.perf_counter()
            try:
                took = float(client.infer("burner", x, timeout_s=30)["took_ms"][0])
            except BedsitError as e:
                raise RuntimeError(f"the lone tenant: {e}") from None
            whole = (time.perf_counter() - began) * 1e3
            if time.monotonic() > window[0]:
                waits.append(whole - took)
                longest = max(longest, took)
            time.sleep(_LONE_EVERY_S)
    if not waits:
        raise RuntimeError("the lone tenant was never answered in time")
    return waits, longest


def _read(fd: int, pid: int) -> list[float]:
    with os.fdopen(fd, "rb") as file:
        raw = file.read()
    if not reap(pid) or not raw:
        raise RuntimeError("a tenant's client failed, or was never answered; its words are above")
    return [float(value) for value in np.frombuffer(raw, np.float64)]


if __name__ == "__main__":
    report.run("fairness", measure, show)
