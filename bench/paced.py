"""One client in a closed loop with a pause after every answer: what a tenant sees that is not in a hurry."""

import os
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.errors import BedsitError
from bench.loads import Array, Call
from bench.processes import end, fork, reap

WARM_UP: Final = 30
_GAP_S: Final = 0.002
_ERRORS: Final = struct.Struct("<Q")


class Paced(NamedTuple):
    """Latencies in nanoseconds, and how many calls failed."""

    latencies: NDArray[np.int64]
    errors: int

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies in milliseconds."""
        return float(np.percentile(self.latencies, percent)) / 1e6


def pace(connect: Callable[[], Call], example: Array, samples: int, cpus: set[int]) -> Paced:
    """Call *samples* times from a process of its own on *cpus*; a call that fails counts, and has a latency too.

    Raises RuntimeError when the client itself fails.
    """
    result_in, result_out = os.pipe()

    def work() -> None:
        os.sched_setaffinity(0, cpus)
        _loop(connect(), example, samples, result_out)

    pid = fork(work)
    os.close(result_out)
    try:
        with os.fdopen(result_in, "rb") as file:
            raw = file.read()
        if not reap(pid) or len(raw) != _ERRORS.size + samples * 8:
            raise RuntimeError("the measuring client failed; its words are above")
    finally:
        end(pid)
    return Paced(np.frombuffer(raw, np.int64, samples, _ERRORS.size), *_ERRORS.unpack_from(raw))


def _loop(call: Call, example: Array, samples: int, out: int) -> None:
    clock = time.perf_counter_ns
    took = np.zeros(samples, np.int64)
    errors = 0
    for number in range(-WARM_UP, samples):
        began = clock()
        try:
            call(example)
        except BedsitError:
            errors += 1
        if number >= 0:
            took[number] = clock() - began
        time.sleep(_GAP_S)
    with os.fdopen(out, "wb") as file:
        file.write(_ERRORS.pack(errors))
        file.write(took.tobytes())
