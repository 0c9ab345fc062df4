"""``bedsit down``: stop everything, tenants included."""

import contextlib
import fcntl
import os
import select
import time
from pathlib import Path
from typing import Final

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.listener import Listener, find_daemon, find_router
from bedsit.cli.render import Phases, Stopwatch
from bedsit.ipc.errors import BedsitError, error

app = make_app()

LOCK_NAME: Final = "up.lock"
_DEADLINE_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.02


@verb(app, "down", examples="bedsit down\nbedsit down --run-dir /tmp/box")
def stop_box(box: Box) -> None:
    """Stop everything: every slot, the zygotes, the router, the daemon. Tenants, models and keys stay on disk.

    Returns when all of it is gone. To restart only the daemon or the router, end that process: slots go on serving.
    """
    with box.screen.phases() as phases:
        found = end_everything(box, phases)
        if found:
            with Stopwatch(phases)("bedsit up ends"):
                await_keeper(box.run_dir / LOCK_NAME)
    box.screen.note(f"everything at {box.run_dir} is down" if found else f"nothing runs at {box.run_dir}")


def end_everything(box: Box, phases: Phases) -> bool:
    """Have the daemon destroy all, and wait until daemon and router are gone. False when nothing was running.

    Raises ``daemon.unavailable`` when slots run without a daemon, which alone can end them.
    """
    watch = Stopwatch(phases)
    with contextlib.suppress(BedsitError):
        box.call_telling(phases, "ping")  # where systemd holds its socket, a daemon that is away comes for it
    with find_daemon(box.run_dir) as daemon, find_router(box.run_dir) as router:
        if daemon is None:
            if router is None and not has_leftovers(box.run_dir):
                return False
            raise error(
                "daemon.unavailable",
                f"slots or the router still run at {box.run_dir}, but the daemon, which alone can end them, does not",
                "bring it back with bedsit up, then bedsit down",
            )
        try:
            box.call_telling(phases, "down")
        except BedsitError as e:
            # The daemon may be gone before its answer gets through; what counts is that all else is gone too.
            if e.code != "daemon.unavailable" or has_leftovers(box.run_dir):
                raise
        with watch("daemon and router end"):
            for process in (daemon, router):
                _await_end(process)
    return True


def has_leftovers(run_dir: Path) -> bool:
    """Whether slots or zygotes are on record in the run directory; ``down`` leaves none."""
    return any(run_dir.glob("records/*.json")) or any(run_dir.glob("zygotes/*.sock"))


def await_keeper(lock: Path) -> None:
    """Wait until no ``bedsit up`` holds its lock, so that the next one can begin at once."""
    deadline = time.monotonic() + _DEADLINE_S
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                time.sleep(_LOOK_EVERY_S)
        finally:
            os.close(fd)


def _await_end(process: Listener | None) -> None:
    if process is None:
        return
    poller = select.poll()
    poller.register(process.pidfd, select.POLLIN)
    began = time.monotonic()
    if not poller.poll(_DEADLINE_S * 1000):
        took = time.monotonic() - began
        raise error(
            "deadline.exceeded", f"process {process.pid} has not ended within {took:.0f} s", "see: bedsit status"
        )
