"""Client processes in closed loops, each with a connection of its own, and what they saw."""

import os
import select
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.errors import BedsitError
from bench.processes import end, fork, reap
from bench.rivals.http import TIMEOUT_S
from bench.rivals.models import Array
from bench.rivals.rival import Caller

Connect = Callable[[str], Caller]
#: Calls before the clock runs, beside the one that is checked: as many as fit into a part of the loop's time.
_WARM_UP: Final = 50
_WARM_UP_PART: Final = 0.25
_READY_S: Final = 60.0
#: What a loop may take beyond its seconds: the call that has just begun.
_LATE_S: Final = 60.0
_TRY_EVERY_S: Final = 0.005
_LOOK_EVERY_S: Final = 0.1
_TOLERANCE: Final = 1e-4
#: Answers of more values than these are compared bit by bit: they are echoes.
_LARGE: Final = 1 << 16
_WORDS: Final = 500
_PIECE_BYTES: Final = 1 << 20
_READY, _DONE, _FAILED = b"r", b"d", b"f"


class Case(NamedTuple):
    """A model, an input for it, and the answer that is right."""

    model: str
    x: Array
    y: Array


class Load(NamedTuple):
    """How many clients call for how long, the pause that each makes after an answer, and the cores they run on."""

    clients: int
    seconds: float
    pause_s: float = 0.0
    cpus: frozenset[int] | None = None


class Seen(NamedTuple):
    """Latencies of all clients in nanoseconds, and answers per second of all together."""

    latencies: NDArray[np.int64]
    per_second: float

    def percentile_us(self, percent: float) -> float:
        """A percentile of the latencies in microseconds."""
        return float(np.percentile(self.latencies, percent)) / 1e3


class Clients:
    """Processes that are connected and warm when this is made, call from ``go`` on, and are gone after ``close``.

    Each checks its first answer against the case. Raises RuntimeError with what one said that failed, or was not ready.
    """

    def __init__(self, connect: Connect, case: Case, load: Load) -> None:
        self._load = load
        self._running: dict[int, int] = {}
        gate, self._gate = os.pipe()
        ready, said = os.pipe()
        try:
            for _ in range(load.clients):
                self._start(connect, case, gate, said)
            self._await(ready)
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (gate, ready, said):
                os.close(fd)

    def go(self) -> None:
        """Let all start at once."""
        os.write(self._gate, bytes(self._load.clients))

    def collect(self) -> Seen:
        """Wait until all have ended. Raises RuntimeError with what one said that failed."""
        deadline = time.monotonic() + self._load.seconds + _LATE_S
        parts = [self._collect(pid, deadline) for pid in list(self._running)]
        rate = sum((len(part) - 1) / int(part[-1]) * 1e9 for part in parts)
        return Seen(np.concatenate([part[:-1] for part in parts]), rate)

    def close(self) -> None:
        """End those that still run."""
        for pid, fd in self._running.items():
            end(pid)
            os.close(fd)
        self._running.clear()
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, connect: Connect, case: Case, gate: int, said: int) -> None:
        result, out = os.pipe()

        def call() -> list[int]:
            return _call(connect, case, self._load, lambda: _pass(said, gate))

        self._running[fork(lambda: _say(out, said, call))] = result
        os.close(out)

    def _await(self, ready: int) -> None:
        deadline = time.monotonic() + _READY_S
        words = b""
        while len(words) < self._load.clients and _FAILED not in words:
            words += _read(ready, deadline)
        if _FAILED in words:
            failed, _, _ = select.select(list(self._running.values()), [], [], _LATE_S)
            raise RuntimeError(_read_result(failed[0], deadline)[1:].decode())

    def _collect(self, pid: int, deadline: float) -> NDArray[np.int64]:
        raw = _read_result(self._running[pid], deadline)
        os.close(self._running.pop(pid))
        reap(pid)
        if raw[:1] != _DONE:
            raise RuntimeError(raw[1:].decode() or "a client ended without a word")
        return np.frombuffer(raw, np.int64, offset=len(_DONE))


def drive(connect: Connect, case: Case, load: Load) -> Seen:
    """One load from its beginning to its end."""
    with Clients(connect, case, load) as clients:
        clients.go()
        return clients.collect()


def await_answer(connect: Connect, case: Case, deadline: float, is_there: Callable[[], bool]) -> float:
    """Ask again and again until the first answer, and give when that was, on the monotonic clock.

    Raises RuntimeError when there is none by *deadline*, or the server is not there any more. From a process of its
    own, because a client may leave threads behind.
    """
    result, out = os.pipe()
    pid = fork(lambda: _say(out, out, lambda: _try(connect, case, deadline)))
    os.close(out)
    try:
        while not select.select([result], [], [], _LOOK_EVERY_S)[0]:
            if not is_there():
                raise RuntimeError("it ended before its first answer")
        raw = _read_result(result, deadline + TIMEOUT_S)
        if raw[:1] != _DONE:
            raise RuntimeError(raw.removeprefix(_FAILED).decode() or "a client ended without a word")
        return float(np.frombuffer(raw, np.int64, offset=len(_DONE))[0]) / 1e9
    finally:
        end(pid)
        os.close(result)


def _try(connect: Connect, case: Case, deadline: float) -> list[int]:
    while True:
        try:
            caller = connect(case.model)
            try:
                y = caller(caller.hold(case.x))
                answered = time.monotonic_ns()
            finally:
                caller.close()
        except (OSError, RuntimeError, BedsitError):
            if time.monotonic() > deadline:
                raise
            time.sleep(_TRY_EVERY_S)
        else:
            _check(case, y)
            return [answered]


def _call(connect: Connect, case: Case, load: Load, wait: Callable[[], None]) -> list[int]:
    """Latencies of one client, and the nanoseconds from its first call to its last answer."""
    if load.cpus:
        os.sched_setaffinity(0, load.cpus)
    caller = connect(case.model)
    x = caller.hold(case.x)
    _check(case, caller(x))
    _warm(caller, x, load.seconds * _WARM_UP_PART)
    wait()
    clock, pause_s = time.perf_counter_ns, load.pause_s
    took: list[int] = []
    began = now = clock()
    until = began + int(load.seconds * 1e9)
    while now < until:
        caller(x)
        answered = clock()
        took.append(answered - now)
        if pause_s:
            time.sleep(pause_s)
            now = clock()
        else:
            now = answered
    took.append(now - began)
    caller.close()
    return took


def _check(case: Case, y: Array) -> None:
    if y.shape != case.y.shape or not _is_close(y, case.y):
        raise RuntimeError(f"{case.model}: a wrong answer")


def _is_close(y: Array, right: Array) -> bool:
    return np.array_equal(y, right) if y.size > _LARGE else np.allclose(y, right, rtol=_TOLERANCE, atol=_TOLERANCE)


def _warm(caller: Caller, x: Array, seconds: float) -> None:
    until = time.perf_counter() + seconds
    for _ in range(_WARM_UP):
        if time.perf_counter() > until:
            return
        caller(x)


def _pass(said: int, gate: int) -> None:
    """Say that this client is ready, and wait for its byte of those that start everybody."""
    os.write(said, _READY)
    os.read(gate, 1)


def _say(out: int, said: int, work: Callable[[], list[int]]) -> None:
    """Write what *work* gives to *out*; when it fails, its words, and to *said* that it did."""
    try:
        raw = _DONE + np.array(work(), np.int64).tobytes()
    except Exception as e:  # noqa: BLE001 - whatever a client meets is told
        raw = _FAILED + f"{type(e).__name__}: {e}"[:_WORDS].encode()
        if said != out:
            os.write(said, _FAILED)
    with os.fdopen(out, "wb") as file:
        file.write(raw)


def _read_result(fd: int, deadline: float) -> bytes:
    raw = b""
    while piece := _read(fd, deadline):
        raw += piece
    return raw


def _read(fd: int, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0 or not select.select([fd], [], [], left)[0]:
        raise RuntimeError("clients take too long")
    return os.read(fd, _PIECE_BYTES)
