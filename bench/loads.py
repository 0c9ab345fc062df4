"""Closed loops of client processes against one target."""

import math
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.processes import count_cpu_ns, end, fork, pin, reap

Array = NDArray[np.float32]
Call = Callable[[Array], Array]
WARM_UP: Final = 50
_HEAD: Final = struct.Struct("<Qd")  # answers, seconds
_START_DEADLINE_S: Final = 60.0


class Target(Protocol):
    """Something that answers the tiny model.

    *pids* are its own processes, those of its clients excepted; *router* is the one that only passes on, if there is.
    """

    name: str
    pids: list[int]
    router: int | None

    def connect(self, number: int) -> Call:
        """A client's call; runs in the client's own process, *number* from 0 is that client's."""


class Outcome(NamedTuple):
    """What one closed loop saw: latencies of all clients, answers per second of all, CPU time of the router."""

    latencies: NDArray[np.int64]
    per_second: float
    router_ns: int

    def percentile_us(self, percent: float) -> float:
        """A percentile of the latencies in microseconds."""
        return float(np.percentile(self.latencies, percent)) / 1e3


def drive(target: Target, clients: int, seconds: float, example: Array, cpus: set[int] | None = None) -> Outcome:
    """Let *clients* processes call in closed loops for *seconds*; with *cpus* clients and target run on these only.

    Raises RuntimeError when a client fails or does not start.
    """
    everywhere = os.sched_getaffinity(0)
    pin(target.pids, cpus or everywhere)
    running: list[tuple[int, int]] = []
    go, start = os.pipe()
    ready_in, ready_out = os.pipe()
    try:
        for number in range(clients):
            result_in, result_out = os.pipe()

            def work(number: int = number, result_out: int = result_out) -> None:
                os.close(start)
                if cpus:
                    os.sched_setaffinity(0, cpus)
                call = target.connect(number)
                _warm(call, example)
                os.write(ready_out, b"r")
                os.read(go, 1)  # EOF: everybody starts at once
                _loop(call, example, seconds, result_out)

            running.append((fork(work), result_in))
            os.close(result_out)
        _await_ready(ready_in, clients)
        routers = [target.router] if target.router else []
        before = count_cpu_ns(routers)
        os.close(start)
        start = -1
        latencies, per_second = _collect(running)
        return Outcome(latencies, per_second, count_cpu_ns(routers) - before)
    finally:
        for fd in (go, start, ready_in, ready_out, *(result for _, result in running)):
            if fd >= 0:
                os.close(fd)
        for pid, _ in running:
            end(pid)
        pin(target.pids, everywhere)


def _warm(call: Call, example: Array) -> None:
    for _ in range(WARM_UP):
        call(example)


def _loop(call: Call, example: Array, seconds: float, out: int) -> None:
    clock = time.perf_counter_ns
    took: list[int] = []
    add = took.append
    began = last = clock()
    until = began + int(seconds * 1e9)
    while last < until:
        call(example)
        now = clock()
        add(now - last)
        last = now
    with os.fdopen(out, "wb") as file:
        file.write(_HEAD.pack(len(took), (last - began) / 1e9))
        file.write(np.array(took, np.int64).tobytes())


def _await_ready(fd: int, clients: int) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while clients:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise RuntimeError(f"{clients} clients have not connected within {_START_DEADLINE_S:.0f} s")
        clients -= len(os.read(fd, clients))


def _collect(running: list[tuple[int, int]]) -> tuple[NDArray[np.int64], float]:
    latencies, per_second, failed = [], 0.0, 0
    for pid, fd in running:
        with os.fdopen(os.dup(fd), "rb") as file:
            raw = file.read()
        if not reap(pid) or len(raw) < _HEAD.size:
            failed += 1
            continue
        count, seconds = _HEAD.unpack_from(raw)
        latencies.append(np.frombuffer(raw, np.int64, count, _HEAD.size))
        per_second += count / seconds
    if failed:
        raise RuntimeError(f"{failed} of {len(running)} clients failed; their words are above")
    merged = np.concatenate(latencies)
    if not math.isfinite(per_second) or not len(merged):
        raise RuntimeError("no answers")
    return merged, per_second
