"""The zygote: a single-threaded root process with torch imported, from which slots are forked.

Guarantees: holds no secret, no tenant byte, no CUDA context and no ZeroMQ socket; never forks while it has a second
thread; a failed spawn leaves nothing behind. Slots outlive it.
Assumes: exec'ed with an empty environment (what is in a process's memory is in its children's memory too).
Why not multiprocessing's forkserver: it can neither take an order of walls nor say which one was refused.

Run as ``python -I -m bedsit.sandbox.zygote --socket PATH --generation N``.
"""

import argparse
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import setproctitle

import bedsit
from bedsit.ipc import seqpacket
from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox import pages, trees
from bedsit.sandbox.jail import libc
from bedsit.sandbox.jail.birth import WAYS, Way
from bedsit.sandbox.jail.context import House
from bedsit.sandbox.jail.steps import STEPS, Step
from bedsit.sandbox.spawn import MAX_FDS, Entry, Plan, read_order, spawn

PROTOCOL: Final = 3
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_HARMLESS: Final = {*_ONE_THREAD, "LC_CTYPE"}  # Python sets LC_CTYPE itself when there is no locale (PEP 538)


def main() -> None:
    """Warm up, then serve until told to stop."""
    parser = argparse.ArgumentParser(prog="bedsit.sandbox.zygote")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--generation", required=True, type=int)
    arguments = parser.parse_args()
    surplus = sorted(set(os.environ) - _HARMLESS)
    if surplus:
        sys.exit(f"the zygote must be started with an empty environment, not with {', '.join(surplus)}")
    setproctitle.getproctitle()  # now: it finds its place beside the environment only while that is as exec left it
    entry = warm_up()
    serve(arguments.socket, arguments.generation, entry=entry)


def warm_up() -> Entry:
    """Import what a worker needs and run each kind of kernel once, on one thread. Returns the worker's entry.

    One thread: libgomp then makes no pool. A pool would not exist in a child, which would wait for it for ever.
    """
    os.environ.update(_ONE_THREAD)  # or numpy's OpenBLAS starts a thread at import
    gc.disable()
    torch = importlib.import_module("torch")
    importlib.import_module("numpy.random")  # lazy in numpy 2: 20 ms in each slot if it is not done here
    torch.set_num_threads(1)
    entry: Entry = importlib.import_module("bedsit.sandbox.worker.serve").run
    with torch.inference_mode():
        (torch.ones(64, 64) @ torch.ones(64, 64)).sum().item()
        torch.nn.Conv2d(3, 4, 3)(torch.ones(1, 3, 16, 16))
    gc.enable()
    for name in _ONE_THREAD:
        del os.environ[name]
    return entry


def serve(
    socket_path: str,
    generation: int,
    steps: tuple[Step, ...] = STEPS,
    entry: Entry | None = None,
    ways: tuple[Way, ...] = WAYS,
) -> None:
    """Bind *socket_path* (root only) and answer the daemon, which may come and go; returns after "stop".

    *steps*, *entry* and *ways* are arguments of this function only, so that tests can show that a wall matters, and
    what an older kernel does. No option, key or environment variable reaches them.
    """
    setproctitle.setproctitle(f"bedsit: zygote {generation}")
    libc.load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # slots are the daemon's to watch; nobody here waits for one
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    path = Path(os.path.realpath(socket_path))
    entry = entry or importlib.import_module("bedsit.sandbox.worker.serve").run
    zygote = _Zygote(generation, Plan(steps, entry, ways), path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        os.umask(0o077)
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        listener.bind(str(new))
        listener.listen(8)
        # What exists now is shared with all slots until it is written to: keep the collector from doing that.
        gc.collect()
        gc.freeze()
        pages.collapse()
        new.rename(path)  # only now: whoever sees it may connect
        try:
            zygote.answer_all(listener)
        finally:
            path.unlink(missing_ok=True)


class _Zygote:
    """One generation: its house, its plan of a slot and how many slots it forked."""

    def __init__(self, generation: int, plan: Plan, path: Path) -> None:
        self._generation = generation
        self._plan = plan
        self._forks = 0
        self._house = House(
            trees=trees.find_trees(),
            samples=trees.find_samples(),
            staging=str(path.parent),
            mount_namespace=os.readlink("/proc/self/ns/mnt"),
        )

    def answer_all(self, listener: socket.socket) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        connections: dict[int, socket.socket] = {}
        running = True
        while running:
            for fd, _ in poll.poll():
                if fd == listener.fileno():
                    connection, _ = listener.accept()
                    connections[connection.fileno()] = connection
                    poll.register(connection, select.POLLIN)
                    continue
                try:
                    alive, running = self._answer(connections[fd])
                except (BedsitError, OSError) as e:
                    sys.stderr.write(f"closing a connection: {e}\n")
                    alive = False
                if not alive:
                    poll.unregister(fd)
                    connections.pop(fd).close()
                if not running:
                    break

    def _answer(self, connection: socket.socket) -> tuple[bool, bool]:
        """Handle one packet. Returns (is the connection alive, shall the zygote go on)."""
        message, fds = seqpacket.recv_packet(connection, MAX_FDS)
        try:
            if message is None:
                return False, True
            reply = self._reply(message, fds)
        finally:
            seqpacket.close_all(fds)
        seqpacket.send_packet(connection, reply)
        return True, message["op"] != "stop"

    def _reply(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        match message.get("op"):
            case "hello":
                return {
                    "ok": True,
                    "generation": self._generation,
                    "pid": os.getpid(),
                    "version": bedsit.__version__,
                    "forks": self._forks,
                    "protocol": PROTOCOL,
                }
            case "spawn":
                order, named = read_order(message, fds)
                self._forks += 1
                return spawn(order, named, self._house, self._plan)
            case "stop":
                return {"ok": True}
            case op:
                raise error("wire.malformed", f"unknown operation {op!r}")


if __name__ == "__main__":
    main()
