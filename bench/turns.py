"""Turns on a time-sliced device, as part of `bench.fairness`: one core that real workers burn in turn.

weights     eight tenants with shares 1, 2 and 4 ask without end, half of them for 5 ms at a time, half for 50
victim      a realtime tenant's 5 ms, at Poisson times that load the device by 2 %, alone and beside seven tenants that
            want all of it: four in batches of 10 ms, three in calls of 100 ms that may yield after each
hand-over   how long the device is idle while somebody waits, from the end of one batch to the beginning of the next by
            the models' own clocks, beside the floor: two bare processes on the same core that hand a packet to each
            other through a third on another one

Client, router and daemon run on the other core. What the models say is believed here: they are the benchmark's own.
"""

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bedsit.ipc.aclient import AsyncClient
from bedsit.ipc.client import Client
from bench.processes import end, fork, reap
from examples.box import Box

BUNDLE: Final = Path(__file__).parent / "turner/bundle"
_SHARES: Final = (0.1, 0.1, 0.2, 0.2, 0.4, 0.4, 0.1, 0.2)
_MS: Final = (5.0, 50.0, 5.0, 50.0, 5.0, 50.0, 50.0, 5.0)
_OUTSTANDING: Final = 3
_WARM_S: Final = 1.5
_VICTIM_MS: Final = 5.0
_LOAD: Final = 0.02
#: What the seven others ask for: how long, and in steps of what.
_AGGRESSORS: Final = ((10.0, 0.0), (10.0, 0.0), (10.0, 0.0), (10.0, 0.0), (100.0, 0.5), (100.0, 0.5), (100.0, 0.5))
_FLOOR_TURNS: Final = 500
_FLOOR_MS: Final = 2.0


def make_box(core: int) -> Box:
    """A bedsit with one time-sliced core."""
    return Box({"pool_size": 1, "max_slots": 32, "devices": {"shared_cores": {"turns": str(core)}}})


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """One bedsit, one run. Raises RuntimeError where there are no two cores."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("a device and those who hand it out need two cores")
    core, others = cores[-1], set(cores[:-1])
    with make_box(core) as box:
        os.sched_setaffinity(0, others)
        try:
            keep_off(box, others)
            floors = [_measure_floor(core, others)]
            weights = _measure_weights(box, 6.0 if quick else 30.0)
            floors.append(_measure_floor(core, others))
            victim = _measure_victim(box, 6.0 if quick else 40.0, 1 if quick else 4)
            walls = box.status()["walls"]
        finally:
            os.sched_setaffinity(0, set(cores))
    floor_us = float(np.mean([each["mean_us"] for each in floors]))
    idle = weights.pop("idle")
    return {
        **weights,
        "victim": victim,
        "handover": {**idle, "floors": floors, "floor_us": floor_us, "ratio": round(idle["mean_us"] / floor_us, 3)},
        "walls": walls,
    }


def keep_off(box: Box, cores: set[int]) -> None:
    """Have the router and the daemon of the box on these cores."""
    status = box.status()
    for pid in (status["router"]["pid"], status["pid"]):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def create(box: Box, name: str, share: float, *options: object) -> None:
    """A tenant with the model, which has that share of the device."""
    box.read("tenant", "create", name, "--device", f"core:{share}", "--memory", "256MiB", *options)
    box.read("model", "deploy", name, BUNDLE)


def drive(box: Box, name: str, ms: float, step_ms: float, until_s: float, stack: ExitStack) -> tuple[int, int]:
    """A process that asks for one tenant without end; gives where its stamps can be read, and its pid."""
    result_in, result_out = os.pipe()

    def work() -> None:
        os.close(result_in)
        stamps: list[Any] = []
        with Client(name, run_dir=str(box.run_dir)) as client:
            threads = [
                threading.Thread(target=_ask, args=(client, ms, step_ms, until_s, stamps)) for _ in range(_OUTSTANDING)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        with os.fdopen(result_out, "wb") as file:
            file.write(np.concatenate(stamps).tobytes())

    pid = fork(work)
    os.close(result_out)
    stack.callback(end, pid)
    return result_in, pid


def read(fd: int, pid: int) -> Any:
    """All pieces that a driven tenant's model ran, [n, 2] in ns. Raises RuntimeError when its client failed."""
    with os.fdopen(fd, "rb") as file:
        raw = file.read()
    if not reap(pid) or not raw:
        raise RuntimeError("a tenant's client failed, or was never answered; its words are above")
    return np.frombuffer(raw, np.int64).reshape(-1, 2)


def jain(values: Sequence[float]) -> float:
    """Jain, Chiu, Hawe: A quantitative measure of fairness (1984): 1 for equal values, 1 / n where one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def _ask(client: Client, ms: float, step_ms: float, until_s: float, stamps: list[Any]) -> None:
    x = {"ms": np.array([ms, step_ms], np.float32)}
    while time.monotonic() < until_s:
        stamps.append(client.infer("turner", x, timeout_s=60)["pieces"].copy())


def _measure_weights(box: Box, seconds: float) -> dict[str, Any]:
    names = [f"t{index}" for index in range(len(_SHARES))]
    for name, share in zip(names, _SHARES, strict=True):
        create(box, name, share)
    with ExitStack() as stack:
        began = time.monotonic() + 1.0
        until = began + _WARM_S + seconds
        drives = [drive(box, name, ms, 0.0, until, stack) for name, ms in zip(names, _MS, strict=True)]
        pieces = [read(*each) for each in drives]
    window = int((began + _WARM_S) * 1e9), int((until - 0.3) * 1e9)
    took = [float((np.clip(each[:, 1], *window) - np.clip(each[:, 0], *window)).sum()) for each in pieces]
    for name in names:
        box.read("tenant", "delete", name, "--yes")
    return {
        "jain": round(jain([time / share for time, share in zip(took, _SHARES, strict=True)]), 4),
        "weights": list(_SHARES),
        "service_ms": list(_MS),
        "shares": [round(time / sum(took), 4) for time in took],
        "busy": round(sum(took) / (window[1] - window[0]), 4),
        "idle": _find_gaps(np.concatenate(pieces), window),
    }


def _find_gaps(pieces: Any, window: tuple[int, int]) -> dict[str, float]:
    """The times between the end of one piece and the beginning of the next, whoever's; below 0 where two overlap."""
    inside = pieces[(pieces[:, 0] > window[0]) & (pieces[:, 1] < window[1])]
    order = inside[np.argsort(inside[:, 0])]
    gaps = (order[1:, 0] - order[:-1, 1]) / 1e3
    return {
        "mean_us": round(float(gaps.mean()), 1),
        "p50_us": round(float(np.median(gaps)), 1),
        "p99_us": round(float(np.percentile(gaps, 99)), 1),
        "overlaps": int((gaps < 0).sum()),
        "turns": len(gaps) + 1,
    }


def _measure_victim(box: Box, seconds: float, rounds: int) -> dict[str, Any]:
    create(box, "victim", 0.1, "--class", "realtime")
    for index in range(len(_AGGRESSORS)):
        create(box, f"a{index}", 0.1)
    alone: list[float] = []
    beside: list[float] = []
    for number in range(rounds):
        alone += asyncio.run(_arrive(box, seconds, number))
        with ExitStack() as stack:
            until = time.monotonic() + 1.5 + seconds
            drives = [drive(box, f"a{i}", *work, until, stack) for i, work in enumerate(_AGGRESSORS)]
            time.sleep(1.0)
            beside += asyncio.run(_arrive(box, seconds, number))
            busy = [read(*each) for each in drives]
    window = int((until - seconds) * 1e9), int((until - 0.3) * 1e9)
    took = sum(float((np.clip(each[:, 1], *window) - np.clip(each[:, 0], *window)).sum()) for each in busy)
    at = {f"p{percent}": [float(np.percentile(each, percent)) for each in (alone, beside)] for percent in (50, 99)}
    return {
        "samples": [len(alone), len(beside)],
        **{f"{name}_ms": [round(value, 2) for value in pair] for name, pair in at.items()},
        "ratio": round(at["p99"][1] / at["p99"][0], 3),
        "others_busy": round(took / (window[1] - window[0]), 3),
    }


async def _arrive(box: Box, seconds: float, seed: int) -> list[float]:
    """Latencies in ms, from the time that a request was to be sent: those before it are not waited for."""
    draw = random.Random(seed)  # noqa: S311 - arrival times
    took: list[float] = []
    async with AsyncClient("victim", run_dir=str(box.run_dir)) as client:
        x = {"ms": np.array([_VICTIM_MS, 0.0], np.float32)}
        await client.infer("turner", x, timeout_s=30)

        async def ask(at: float) -> None:
            await client.infer("turner", x, timeout_s=30)
            took.append((time.perf_counter() - at) * 1e3)

        tasks = []
        at = time.perf_counter()
        until = at + seconds
        while (at := at + draw.expovariate(_LOAD / _VICTIM_MS * 1e3)) < until:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            tasks.append(asyncio.ensure_future(ask(at)))
        await asyncio.gather(*tasks)
    return took


# -- the floor ---------------------------------------------------------------------------------------------------------


def _measure_floor(core: int, others: set[int]) -> dict[str, float]:
    """Two processes on *core* that burn in turn; who is done tells a third one elsewhere, which tells the other."""
    ours = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    results = [os.pipe() for _ in range(2)]
    pids = [fork(partial(_burn, ours, results, index, core)) for index in range(2)]
    try:
        os.sched_setaffinity(0, others)
        links = [pair[0] for pair in ours]
        for _, theirs in ours:
            theirs.close()
        links[0].send(b"go")
        for turn in range(2 * _FLOOR_TURNS):
            links[turn % 2].recv(64)
            links[1 - turn % 2].send(b"go")
        for link in links:
            link.close()
        stamps = []
        for fd, out in results:
            os.close(out)
            with os.fdopen(fd, "rb") as file:
                stamps.append(np.frombuffer(file.read(), np.int64).reshape(-1, 2))
    finally:
        for pid in pids:
            end(pid)
    pieces = np.concatenate(stamps)
    return _find_gaps(pieces, (int(np.percentile(pieces[:, 0], 5)), int(pieces.max())))


def _burn(
    pairs: Sequence[tuple[socket.socket, socket.socket]], results: Sequence[tuple[int, int]], index: int, core: int
) -> None:
    link, out = pairs[index][1], results[index][1]
    for near, far in pairs:  # or this process would wait for its own end
        near.close()
        if far is not link:
            far.close()
    os.sched_setaffinity(0, {core})
    stamps: list[tuple[int, int]] = []
    clock = time.monotonic_ns
    with suppress(OSError):
        while link.recv(64):
            began = clock()
            while clock() < began + _FLOOR_MS * 1e6:
                pass
            stamps.append((began, clock()))
            link.send(b"done")
    with os.fdopen(out, "wb") as file:
        file.write(np.array(stamps, np.int64).tobytes())


def summarise(result: Mapping[str, Any]) -> list[str]:
    """The result in lines."""
    victim, handover = result["victim"], result["handover"]
    at = victim["p99_ms"], victim["p50_ms"]
    who, idle = "a realtime victim's p99", f"idle {handover['mean_us']} us between turns"
    return [
        f"device: Jain's index of share / weight {result['jain']:.4f}; busy {result['busy']:.1%} of the time",
        f"device: {who} {at[0][0]} ms alone, {at[0][1]} beside seven others = {victim['ratio']}x (p50 {at[1]})",
        f"device: {idle}, beside {handover['floor_us']:.1f} = {handover['ratio']}x",
        f"device: {handover['overlaps']} of {handover['turns']} turns began before the last one's batch had ended",
    ]
