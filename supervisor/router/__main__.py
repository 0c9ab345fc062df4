"""bedsit-router: ``python -m bedsit.supervisor.router --run-dir DIR``. Runs as its own uid, without capabilities."""

import argparse
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.heldlistener import check_place, take_held_listener, turn_away
from bedsit.ipc.notify import Notifier
from bedsit.supervisor.router.control import Control
from bedsit.supervisor.router.door import Door
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.router import Router

_MEMORY_BYTES: Final = 2 << 30
_log = structlog.get_logger("router")


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or the daemon's order; sessions end with this process, slots do not."""
    parser = argparse.ArgumentParser(prog="bedsit-router", description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=Path("/run/bedsit"))
    parser.add_argument("--user", metavar="UID:GID", help="who to become when started as root")
    options = parser.parse_args(arguments)
    run_dir: Path = options.run_dir
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle("bedsit: router")
    _raise_descriptor_limit()
    _bound_memory()
    if os.geteuid() == 0:
        if not options.user:
            print("bedsit-router: must not run as root: give --user UID:GID", file=sys.stderr)
            return 77
        _become(*map(int, options.user.split(":")))
    if not _await_folder(run_dir / "router"):
        print(f"bedsit-router: {run_dir}/router is missing or not ours; is bedsitd running?", file=sys.stderr)
        return 75

    door_path = run_dir / "router" / "door.sock"
    held: socket.socket | None = None
    try:
        held = take_held_listener(os.environ, "door", socket.SOCK_SEQPACKET)
        if held is not None:
            check_place(held, door_path)
    except BedsitError as e:
        print(f"bedsit-router: {e}", file=sys.stderr)
        if held is not None:
            turn_away(held)
        return 78

    loop = Loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: loop.stop())
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)

    def swallow() -> None:
        os.read(wake_read, 64)

    loop.watch(wake_read, swallow)
    router = Router(run_dir, loop)
    control = Control(run_dir, router, loop)
    control.load_file()
    door = Door(door_path, router, loop, held)
    notifier = Notifier(os.environ)
    notifier.tell("READY=1")
    _keep_watched(notifier, loop)
    _log.info("serving", pid=os.getpid(), tenants=len(router.tenants), slots=len(router.slots))
    gc.freeze()
    try:
        loop.run()
    finally:
        door.close(for_good=control.told_to_end)
        control.close()
        router.close()
        notifier.close()
    return 0


def _keep_watched(notifier: Notifier, loop: Loop) -> None:
    """Tell systemd again and again that the loop turns, out of the loop."""
    interval_s = notifier.watchdog_interval_s
    if interval_s is not None:
        notifier.tell("WATCHDOG=1")
        loop.later(interval_s, partial(_keep_watched, notifier, loop))


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bound_memory() -> None:
    # libzmq collects the parts of a message that never ends, without any bound of its own. At this one it drops that
    # connection and what it holds; whatever else comes of it, the box is not taken along.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > _MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))


def _become(uid: int, gid: int) -> None:
    """Drop root for good; nothing hostile has been read yet.

    Done here and not by whoever starts us, so that an interpreter that only root can read (in root's home, say) serves
    as well.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)  # all three at once: no saved uid to come back by, and every capability is gone
    os.umask(0o077)


def _await_folder(folder: Path, timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not os.access(folder, os.W_OK):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


if __name__ == "__main__":
    sys.exit(main())
