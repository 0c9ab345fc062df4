"""One process' GPU: its context, the kernels, and how much work of theirs a millisecond is."""

import ctypes
import os
from ctypes import c_uint32, c_uint64
from typing import Final

from tests.gpu.cuda import Cuda
from tests.gpu.kernels import Kernels

#: Threads of a block of the kernel *work*, of which each multiprocessor gets one.
_BLOCK: Final = 256
_WARM_MS: Final = 500.0
_FIRST_ROUNDS: Final = 20_000


class Gpu:
    """Opened at once; what is asked of it goes to *stream*, the default one unless set."""

    def __init__(self) -> None:
        self.cuda = Cuda()
        self.cuda.open()
        self.kernels = Kernels(self.cuda)
        self.multiprocessors = self.cuda.attribute(16)
        self.stream: int | None = None
        self.rounds_per_ms = 0.0
        self._room = self.cuda.allocate(4096)

    def work(self, ms: float) -> None:
        """Queue that much work for the whole GPU; `calibrate` or *rounds_per_ms* comes first."""
        rounds = max(1, int(ms * self.rounds_per_ms))
        self._launch(rounds)

    def work_endlessly(self) -> None:
        """Queue work for years."""
        self._launch(1 << 62)

    def _launch(self, rounds: int) -> None:
        arguments = (c_uint64(rounds), c_uint64(self._room))
        self.kernels.launch("work", self.multiprocessors, _BLOCK, *arguments, stream=self.stream)

    def wait(self) -> None:
        """For everything in the stream."""
        self.cuda.call("cuStreamSynchronize", self.stream)

    def calibrate(self) -> float:
        """Find *rounds_per_ms* on a GPU that nobody else uses, at the clocks that it takes under load."""
        first, last = self.cuda.event(), self.cuda.event()
        took, rounds = 0.0, _FIRST_ROUNDS
        spent = 0.0
        while spent < _WARM_MS:
            self.cuda.call("cuEventRecord", first, self.stream)
            self._launch(rounds)
            self.cuda.call("cuEventRecord", last, self.stream)
            self.wait()
            took = max(self.cuda.elapsed_ms(first, last), 0.001)
            spent += took
            self.rounds_per_ms = rounds / took
            rounds = max(1, int(20 * self.rounds_per_ms))
        return self.rounds_per_ms

    def sum(self, address: int, size: int) -> int:
        """The sum of all 32-bit words of device or mapped memory; waits."""
        self.cuda.fill(self._room, 64, 0)
        self.queue_sum(address, size)
        self.cuda.synchronize()
        return self.cuda.read(self._room, 1)[0]

    def queue_sum(self, address: int, size: int) -> None:
        """The same without waiting and without an answer: one read of all of it."""
        arguments = (c_uint64(address), c_uint64(size // 16), c_uint64(self._room))
        self.kernels.launch("sum", self.multiprocessors * 8, 256, *arguments, stream=self.stream)

    def scan(self, address: int, size: int, pattern: int) -> tuple[int, int]:
        """How many words are not zero, and how many are *pattern*; waits."""
        self.cuda.fill(self._room, 64, 0)
        arguments = (c_uint64(address), c_uint64(size // 16), c_uint64(self._room), c_uint32(pattern))
        self.kernels.launch("scan", self.multiprocessors * 8, 256, *arguments, stream=self.stream)
        self.cuda.synchronize()
        some, same = self.cuda.read(self._room, 2)
        return some, same

    def shared_fill(self, pattern: int) -> None:
        """Write *pattern* into all shared memory that blocks can have; waits."""
        self.kernels.launch("shared_fill", self.multiprocessors * 8, 256, c_uint32(pattern), c_uint64(self._room))
        self.cuda.synchronize()

    def shared_scan(self, pattern: int) -> tuple[int, int]:
        """As `scan`, in shared memory that nobody wrote since the blocks began."""
        self.cuda.fill(self._room, 64, 0)
        self.kernels.launch("shared_scan", self.multiprocessors * 8, 256, c_uint32(pattern), c_uint64(self._room))
        self.cuda.synchronize()
        some, same = self.cuda.read(self._room, 2)
        return some, same

    def poke(self, address: int, word: int) -> int:
        """Store one word wherever that is; gives the code that waiting for it gave."""
        self.kernels.launch("poke", 1, 1, c_uint64(address), c_uint32(word), stream=self.stream)
        return self.cuda.ask("cuCtxSynchronize")

    def fall(self) -> int:
        """Run a trap instruction; gives the code that waiting for it gave."""
        self.kernels.launch("fall", 1, 1, stream=self.stream)
        return self.cuda.ask("cuCtxSynchronize")

    def trace(self, length_ms: float, gap_us: float, room: int = 2000) -> tuple[int, int, list[tuple[int, int]]]:
        """Look at the clock for that long; how many gaps there were, how many looks, and where the gaps were, in ns."""
        out = self.cuda.allocate(16 + 16 * room)
        arguments = (c_uint64(out), c_uint64(room), c_uint64(int(length_ms * 1e6)), c_uint64(int(gap_us * 1e3)))
        self.kernels.launch("trace", 1, 1, *arguments, stream=self.stream)
        self.wait()
        count, looks, *ends = self.cuda.read(out, 2 + 2 * room)
        self.cuda.call("cuMemFree_v2", out)
        pairs = list(zip(ends[::2], ends[1::2], strict=True))
        return count, looks, pairs[: min(count, room)]

    def record_graph(self, ms: float) -> int | None:
        """A graph of three pieces of work, ready to be launched into *stream*, which must not be the default one."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self.cuda.call("cuStreamBeginCapture_v2", self.stream, 0)
        for _ in range(3):
            self.work(ms / 3)
        self.cuda.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self.cuda.call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, 0)
        return ready.value


def read_memory_kib(pid: int | None = None) -> dict[str, int]:
    """The kernel's figures of a process' memory: VmRSS and the like (proc_pid_status(5))."""
    with open(f"/proc/{pid or os.getpid()}/status") as status:
        fields = (line.split() for line in status)
        return {field[0][:-1]: int(field[1]) for field in fields if field[0].startswith(("Vm", "Rss"))}
