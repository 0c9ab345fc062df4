"""How a zygote generation becomes a process: a child of the daemon, or a unit that systemd starts (`units`)."""

import asyncio
import os
import signal
import sys
from typing import Final, Protocol

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.inspect import start_time
from bedsit.supervisor.generations import Generations
from bedsit.supervisor.log import get_log
from bedsit.supervisor.watch import EndWatch
from bedsit.supervisor.zygote import reap

#: OpenBLAS starts a thread at import unless told otherwise, and a process with threads must not fork slots.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_EXIT_S: Final = 5.0


class Starter(Protocol):
    """Starts generations, and looks after what a generation has beside its process."""

    async def start(self, generation: int) -> None:
        """Start it; returns before it listens. Raises BedsitError or OSError."""

    async def failure(self, generation: int) -> str | None:
        """Why it will never listen; None while it still may."""

    async def abandon(self, generation: int) -> None:
        """End one that does not listen or hangs, whichever daemon started it. Its slots live on."""

    def admit(self, generation: int, pid: int) -> None:
        """It listens: make its home the place of new slots. Raises ``internal`` when it is not of this kind."""

    async def sweep(self, living: set[int]) -> None:
        """Remove what is left of generations that are not among the *living* and have no slots any more."""

    def where_to_look(self, generation: int) -> str:
        """Where a person finds what it said."""


class ChildStarter:
    """Without systemd: an own session, an empty environment, its output in a file. It outlives the daemon."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._pids: dict[int, int] = {}

    async def start(self, generation: int) -> None:
        """As Starter says."""
        pid = self._pids[generation] = self._spawn(generation)
        started_at = start_time(pid)
        try:
            self._generations.save_process(generation, pid, started_at)
        except BedsitError:
            await _end(pid, started_at)
            raise

    def _spawn(self, generation: int) -> int:
        log, flags = str(self._generations.log(generation)), os.O_WRONLY | os.O_CREAT | os.O_APPEND
        argv = [sys.executable, "-I", "-m", "bedsit.sandbox.zygote"]
        argv += ["--socket", str(self._generations.socket(generation)), "--generation", str(generation)]
        return os.posix_spawn(
            sys.executable,
            argv,
            _ENVIRONMENT,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP),
        )

    async def failure(self, generation: int) -> str | None:
        """As Starter says."""
        return "it ended while starting" if reap(self._pids[generation]) else None

    async def abandon(self, generation: int) -> None:
        """As Starter says."""
        known = self._generations.load_process(generation)
        if known is not None:
            await _end(*known)

    def admit(self, generation: int, pid: int) -> None:
        """As Starter says: all generations share the daemon's own place for slots."""

    async def sweep(self, living: set[int]) -> None:
        """As Starter says: there is nothing beside the process."""

    def where_to_look(self, generation: int) -> str:
        """As Starter says."""
        return str(self._generations.log(generation))


async def _end(pid: int, started_at: int) -> None:
    """End the process that has this number since then, and no other."""
    over = asyncio.Event()
    try:
        watch = EndWatch(pid, over.set)
    except ProcessLookupError:
        return
    try:
        if start_time(pid) == started_at:  # asked while it is held: no other process can get the number now
            watch.kill()
            await asyncio.wait_for(over.wait(), _EXIT_S)
            reap(pid)
    except ProcessLookupError:
        return
    except TimeoutError:
        get_log().error("zygote.unkillable", pid=pid)
    finally:
        watch.close()
