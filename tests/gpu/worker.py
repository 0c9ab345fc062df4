"""A peer that computes: in a closed loop, in floods, under leases, or once and slowly."""

import random
import select
import socket
import time
from itertools import pairwise
from typing import Any, Final

from tests.gpu.figures import summarise
from tests.gpu.gpu import Gpu
from tests.gpu.peer import is_called, serve, wait_until_at

#: What a worker under leases says: it wants one, it is done and wants none, it is done and wants the next one.
WANT: Final = b"w"
DONE: Final = b"d"
NEXT: Final = b"n"
#: It ended; its answer follows as a message of its own.
OVER: Final = b"o"
GRANT: Final = b"g"
#: The answer to OVER: no grant comes after it.
BYE: Final = b"b"


class Worker:
    """Handlers of the words; the GPU is opened by *open*."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._gpu: Any = None
        self._queued: tuple[int | None, int | None] | None = None

    def open(self, rounds_per_ms: float = 0.0) -> dict[str, Any]:
        """Make the context; without *rounds_per_ms* find them, for which the GPU must be idle."""
        began = time.monotonic()
        self._gpu = Gpu()
        opened = time.monotonic()
        self._gpu.stream = self._gpu.cuda.stream()
        self._gpu.rounds_per_ms = rounds_per_ms or self._gpu.calibrate()
        self._gpu.work(0.01)
        self._gpu.wait()
        return {"rounds_per_ms": self._gpu.rounds_per_ms, "open_ms": (opened - began) * 1e3}

    def prefer(self, highest: bool) -> dict[str, Any]:  # noqa: FBT001 - a word of the wire
        """From now on use a stream of the highest priority, or of the lowest."""
        lowest_number, highest_number = self._gpu.cuda.priorities()
        self._gpu.stream = self._gpu.cuda.stream(highest_number if highest else lowest_number)
        return {"range": [lowest_number, highest_number]}

    def loop(self, ms: float, at: float, seconds: float) -> dict[str, Any]:
        """Launch and wait, again and again; how long each took, in ms."""
        wait_until_at(at)
        samples, last = [], time.monotonic()
        while last < at + seconds:
            self._gpu.work(ms)
            self._gpu.wait()
            now = time.monotonic()
            samples.append((now - last) * 1e3)
            last = now
        return {"latency": summarise(samples), "done": len(samples), "wall_s": last - at}

    def watch(self, ms: float) -> dict[str, Any]:
        """As `loop`, until the next word; and when the longest one ended."""
        samples, last, longest, longest_at = [], time.monotonic(), 0.0, 0.0
        while not is_called(self._sock):
            self._gpu.work(ms)
            self._gpu.wait()
            now = time.monotonic()
            samples.append((now - last) * 1e3)
            if samples[-1] > longest:
                longest, longest_at = samples[-1], now
            last = now
        return {"latency": summarise(samples), "longest_at": longest_at}

    def flood(self, ms: float, depth: int = 2) -> dict[str, Any]:
        """Keep that many pieces of work queued until the next word."""
        cuda, stream = self._gpu.cuda, self._gpu.stream
        events = [cuda.event() for _ in range(depth)]
        count = 0
        while not is_called(self._sock):
            if count >= depth:
                cuda.call("cuEventSynchronize", events[count % depth])
            self._gpu.work(ms)
            cuda.call("cuEventRecord", events[count % depth], stream)
            count += 1
        self._gpu.wait()
        return {"done": count}

    def duty(self, busy_ms: float, period_ms: float, seconds: float) -> dict[str, Any]:
        """Compute for a part of each period; gives the part that the GPU's own clock measured."""
        cuda, stream = self._gpu.cuda, self._gpu.stream
        first, last = cuda.event(), cuda.event()
        began = time.monotonic()
        busy, due = 0.0, began
        while due < began + seconds:
            cuda.call("cuEventRecord", first, stream)
            self._gpu.work(busy_ms)
            cuda.call("cuEventRecord", last, stream)
            self._gpu.wait()
            busy += cuda.elapsed_ms(first, last)
            due += period_ms / 1e3
            wait_until_at(due)
        return {"part": busy / 1e3 / (time.monotonic() - began)}

    def trace(self, length_ms: float, gap_us: float) -> dict[str, Any]:
        """How long this process ran between gaps, and how long the gaps were, in ms."""
        count, looks, pairs = self._gpu.trace(length_ms, gap_us)
        gaps = [(end - begin) / 1e6 for begin, end in pairs]
        runs = [(after[0] - before[1]) / 1e6 for before, after in pairwise(pairs)]
        first = [[round(begin / 1e6 - pairs[0][0] / 1e6, 4), round(end / 1e6 - begin / 1e6, 4)] for begin, end in pairs]
        return {"count": count, "looks": looks, "gap": summarise(gaps), "run": summarise(runs), "first": first[:40]}

    def queue(self, ms: float, count: int) -> dict[str, Any]:
        """Queue so much work and answer at once; `collect` waits for it."""
        cuda, stream = self._gpu.cuda, self._gpu.stream
        first, last = cuda.event(), cuda.event()
        cuda.call("cuEventRecord", first, stream)
        for _ in range(count):
            self._gpu.work(ms)
        cuda.call("cuEventRecord", last, stream)
        self._queued = (first, last)
        return {}

    def collect(self) -> dict[str, Any]:
        """How long the queued work took by the GPU's clock."""
        assert self._queued is not None
        self._gpu.wait()
        return {"elapsed_ms": self._gpu.cuda.elapsed_ms(*self._queued)}

    def hang(self) -> dict[str, Any]:
        """Launch a kernel without end, and answer."""
        self._gpu.work_endlessly()
        return {}

    def lease(
        self, batch_ms: float, chunk_ms: float, until: float, gap_ms: float = 0.0, seed: int = 0, *, free: bool = False
    ) -> dict[str, Any]:
        """Batches of *batch_ms* until then: one after another, or with *gap_ms* of random time between arrivals.

        Each chunk of them waits for a grant first, except when *free*. A batch's latency begins at its arrival.
        """
        chance = random.Random(seed)
        latencies: list[float] = []
        chunks: list[float] = []
        waits: list[float] = []
        done_ms, due = 0.0, time.monotonic()
        is_asked = False
        while (now := time.monotonic()) < until:
            if gap_ms:
                due += chance.expovariate(1 / gap_ms) / 1e3
                if due >= until:
                    break
                wait_until_at(due)
            else:
                due = now
            left = batch_ms
            while left > 0:
                begins = time.monotonic()
                if not free and not is_asked:
                    self._sock.send(WANT)
                if not free and not self._await_grant(until + 5):
                    return {"error": "no grant came"}
                granted = time.monotonic()
                part = min(left, chunk_ms)
                self._gpu.work(part)
                self._gpu.wait()
                left -= part
                done_ms += part
                ended = time.monotonic()
                waits.append((granted - begins) * 1e3)
                chunks.append((ended - granted) * 1e3)
                if not free:
                    is_asked = left > 0 or (not gap_ms and ended < until)
                    self._sock.send(NEXT if is_asked else DONE)
            latencies.append((time.monotonic() - due) * 1e3)
        if not free:
            self._sock.send(OVER)
            while self._sock.recv(16) not in (BYE, b""):
                pass
        texts = {"latency": latencies, "chunk": chunks, "wait": waits}
        return {"done_ms": done_ms} | {name: summarise(values) for name, values in texts.items()}

    def _await_grant(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        return bool(select.select([self._sock], [], [], left)[0]) and self._sock.recv(16) == GRANT


def compute(sock: socket.socket) -> None:
    """The peer."""
    worker = Worker(sock)
    words = ("open", "prefer", "loop", "watch", "flood", "duty", "trace", "queue", "collect", "hang", "lease")
    serve(sock, {word: getattr(worker, word) for word in words} | {"rest": dict})
