"""A peer that locks, suspends, restores and unlocks other processes: the driver's cuCheckpointProcess* calls.

It is a process of its own because such a call may never come back.
"""

import ctypes
import socket
import time
from typing import Any, Final

from tests.gpu.cuda import Cuda
from tests.gpu.figures import summarise
from tests.gpu.holder import become
from tests.gpu.peer import Peer, serve

#: Each of the four argument structures is 64 bytes, zero but for what is asked (CUcheckpointLockArgs and its like).
_WORDS: Final = 8
STATES: Final = ("running", "locked", "checkpointed", "failed")


class Suspender:
    """Handlers of the words; each answers with the driver's code instead of raising."""

    def __init__(self) -> None:
        self._cuda = Cuda()

    def open(self, user: int | None = None) -> dict[str, Any]:
        """Initialise the driver, without a context: restoring needs it. As *user*, when there is one."""
        if user is not None:
            become(user)
        self._cuda.init()
        return {}

    def lock(self, pid: int, timeout_ms: int) -> dict[str, Any]:
        """Keep the process from asking the GPU for anything, once what it asked for is done."""
        # The first member is 32 bits, and the second one is zero.
        return self._call("cuCheckpointProcessLock", pid, timeout_ms)

    def checkpoint(self, pid: int) -> dict[str, Any]:
        """Bring its memory to the host and let go of the GPU."""
        return self._call("cuCheckpointProcessCheckpoint", pid)

    def restore(self, pid: int) -> dict[str, Any]:
        """Undo `checkpoint`."""
        return self._call("cuCheckpointProcessRestore", pid)

    def unlock(self, pid: int) -> dict[str, Any]:
        """Undo `lock`."""
        return self._call("cuCheckpointProcessUnlock", pid)

    def state(self, pid: int) -> dict[str, Any]:
        """Where the process is, in words."""
        value = ctypes.c_int(-1)
        code = self._cuda.ask("cuCheckpointProcessGetState", pid, ctypes.byref(value))
        known = 0 <= value.value < len(STATES)
        return {"code": code, "state": STATES[value.value] if known and not code else self._cuda.name(code)}

    def cycle(self, pid: int, timeout_ms: int, times: int) -> dict[str, Any]:
        """Lock and unlock so often; what each took in ms, and the names of what failed."""
        locks, unlocks, failures = [], [], []
        for _ in range(times):
            locked = self.lock(pid, timeout_ms)
            if locked["code"]:
                failures.append(locked["name"])
                continue
            locks.append(locked["ms"])
            unlocked = self.unlock(pid)
            unlocks.append(unlocked["ms"])
            if unlocked["code"]:
                failures.append(f"unlock: {unlocked['name']}")
        return {"lock": summarise(locks), "unlock": summarise(unlocks), "failures": failures}

    def _call(self, name: str, pid: int, first: int = 0) -> dict[str, Any]:
        arguments = (ctypes.c_uint64 * _WORDS)(first)
        began = time.monotonic()
        code = self._cuda.ask(name, pid, arguments)
        return {"code": code, "name": self._cuda.name(code), "ms": (time.monotonic() - began) * 1e3}


def suspend(sock: socket.socket) -> None:
    """The peer."""
    suspender = Suspender()
    words = ("open", "lock", "checkpoint", "restore", "unlock", "state", "cycle")
    serve(sock, {word: getattr(suspender, word) for word in words})


def start_suspender(user: int | None = None, wait_s: float = 20.0) -> Peer:
    """One that is ready."""
    peer = Peer("suspender:suspend", wait_s=wait_s)
    peer.ask("open", user=user)
    return peer
