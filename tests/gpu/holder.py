"""A peer that holds memory of the GPU, and looks at what is in it."""

import ctypes
import os
import socket
import time
from typing import Any

from tests.gpu.cuda import IpcHandle
from tests.gpu.figures import GIB
from tests.gpu.gpu import Gpu
from tests.gpu.peer import serve


class Holder:
    """Handlers of the words; the GPU is opened by *open*."""

    def __init__(self, sock: socket.socket) -> None:
        self._gpu: Any = None
        self._blocks: list[tuple[int, int]] = []
        self._graph: int | None = None

    def open(self) -> dict[str, Any]:
        """Make the context and load the kernels."""
        self._gpu = Gpu()
        self._gpu.rounds_per_ms = 1000.0
        return {}

    def allocate(self, gib: float, byte: int | None = None, block_gib: float = 1.0) -> dict[str, Any]:
        """Take memory in blocks, each byte of them set unless *byte* is None; ms for either."""
        taken_ms = filled_ms = 0.0
        left = int(gib * GIB)
        while left > 0:
            size = min(left, int(block_gib * GIB))
            began = time.monotonic()
            address = self._gpu.cuda.allocate(size)
            taken = time.monotonic()
            if byte is not None:
                self._gpu.cuda.fill(address, size, byte)
            self._blocks.append((address, size))
            taken_ms += (taken - began) * 1e3
            filled_ms += (time.monotonic() - taken) * 1e3
            left -= size
        return {"taken_ms": taken_ms, "filled_ms": filled_ms}

    def free(self) -> dict[str, Any]:
        """Give everything back."""
        began = time.monotonic()
        for address, _ in self._blocks:
            self._gpu.cuda.call("cuMemFree_v2", address)
        self._blocks.clear()
        return {"freed_ms": (time.monotonic() - began) * 1e3}

    def sum(self) -> dict[str, Any]:
        """The sum of all words held."""
        return {"sum": sum(self._gpu.sum(address, size) for address, size in self._blocks) & (2**64 - 1)}

    def scan(self, pattern: int) -> dict[str, Any]:
        """How many words of all held are not zero, and how many are *pattern*."""
        found = [self._gpu.scan(address, size, pattern) for address, size in self._blocks]
        return {"some": sum(some for some, _ in found), "same": sum(same for _, same in found)}

    def shared_fill(self, pattern: int, times: int) -> dict[str, Any]:
        """Write *pattern* into all multiprocessors' shared memory, again and again."""
        for _ in range(times):
            self._gpu.shared_fill(pattern)
        return {}

    def shared_scan(self, pattern: int, times: int) -> dict[str, Any]:
        """Look for *pattern* in all multiprocessors' shared memory, again and again."""
        found = [self._gpu.shared_scan(pattern) for _ in range(times)]
        return {"some": sum(some for some, _ in found), "same": sum(same for _, same in found)}

    def graph(self) -> dict[str, Any]:
        """Make a graph, and launch it once."""
        self._gpu.stream = self._gpu.cuda.stream()
        # Once before: the driver loads a kernel when it is first asked for, which no graph that is recorded allows.
        self._gpu.work(0.01)
        self._gpu.wait()
        self._graph = self._gpu.record_graph(3.0)
        return self.replay()

    def replay(self) -> dict[str, Any]:
        """Launch the graph and wait for it."""
        began = time.monotonic()
        self._gpu.cuda.call("cuGraphLaunch", self._graph, self._gpu.stream)
        self._gpu.wait()
        return {"ms": (time.monotonic() - began) * 1e3}

    def hang(self) -> dict[str, Any]:
        """Launch a kernel without end, and answer."""
        self._gpu.work_endlessly()
        return {}

    def give(self) -> dict[str, Any]:
        """A handle of the first block, by which another process can open it."""
        handle = IpcHandle()
        self._gpu.cuda.call("cuIpcGetMemHandle", ctypes.byref(handle), self._blocks[0][0])
        return {"handle": ctypes.string_at(ctypes.addressof(handle), 64).hex(), "size": self._blocks[0][1]}

    def take(self, handle: str, size: int) -> dict[str, Any]:
        """Open such a handle; the memory counts as held."""
        theirs = IpcHandle.from_buffer_copy(bytes.fromhex(handle))
        address = ctypes.c_uint64()
        self._gpu.cuda.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), theirs, 1)
        self._blocks.append((address.value, size))
        return {}

    def become(self, user: int) -> dict[str, Any]:
        """Change to that user, for good; without that the kernel lets nobody of that user look inside."""
        become(user)
        return {}


def become(user: int) -> None:
    """Give up root and every capability for *user*, but stay open to others of that user as a tenant would be."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # SAFETY: prctl(PR_SET_DUMPABLE, 1) touches no memory; a change of user had set it to 0.
    ctypes.CDLL(None, use_errno=True).prctl(4, 1, 0, 0, 0)


def hold(sock: socket.socket) -> None:
    """The peer."""
    holder = Holder(sock)
    words = ("open", "allocate", "free", "sum", "scan", "shared_fill", "shared_scan", "graph", "replay", "hang")
    serve(sock, {word: getattr(holder, word) for word in (*words, "give", "take", "become")})
