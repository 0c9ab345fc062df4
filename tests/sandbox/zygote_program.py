"""A zygote for tests: the real `serve`, with a step list and a worker's entry of the test's choice.

Run as ``python -I zygote_program.py SOCKET [--without NAME,NAME] [--entry shell|real] [--torch] [--sabotage]``.
"""

import argparse
import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bedsit.ipc import seqpacket
from bedsit.sandbox import zygote
from bedsit.sandbox.jail import libc
from bedsit.sandbox.jail.context import Context
from bedsit.sandbox.jail.steps import STEPS, Step

_ROOM = 16


def shell(control_fd: int, slot: str) -> None:
    """A worker that runs whatever Python it is assigned, and answers what that left in `result`."""
    control = socket.socket(fileno=control_fd)
    body, fds = seqpacket.recv_bytes(control, _ROOM)
    scope: dict[str, object] = {"attempt": attempt, "control": control, "fds": fds, "slot": slot, "result": None}
    try:
        exec(compile(body or b"", "<assigned>", "exec"), scope)  # that is what it is for
    except Exception:  # noqa: BLE001
        scope["result"] = {"error": traceback.format_exc()}
    control.send(json.dumps(scope["result"]).encode())
    while True:
        signal.pause()


def attempt(function: Callable[[], object]) -> str:
    """What came of it: "ok", the name of the errno, or of the exception."""
    try:
        function()
    except OSError as e:
        return os.strerror(e.errno or 0)
    except Exception as e:  # noqa: BLE001
        return type(e).__name__
    return "ok"


def sabotaged(step: Step) -> Step:
    """The same step, but failing or hanging when the slot's nonce says so."""

    def run(context: Context) -> None:
        if context.order.nonce == step.name:
            raise PermissionError(1, "sabotage")
        if context.order.nonce == f"hang in {step.name}":
            time.sleep(3600)
        if context.order.nonce == f"die in {step.name}":
            os._exit(9)  # not a signal: pid 1 of a namespace does not get its own
        step.run(context)

    return step._replace(run=run)


def bind_all_devices(context: Context) -> None:
    """A bad step: the box's whole /dev."""
    folder = context.house.staging + "/dev"
    Path(folder).mkdir(parents=True)
    libc.mount("/dev", folder, None, libc.MS_BIND | libc.MS_REC)


def mount_whole_proc(context: Context) -> None:
    """A bad step: a /proc that shows everybody."""
    folder = context.house.staging + "/proc"
    Path(folder).mkdir(parents=True)
    libc.mount("proc", folder, "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)


def keep_all_descriptors(_: Context) -> None:
    """A bad step: a folder of the box stays open."""
    os.set_inheritable(os.open("/", os.O_RDONLY), True)


def fork_leaky_worker(context: Context) -> None:
    """A bad step: the real fork, then a worker that has one descriptor too many."""
    next(step for step in STEPS if step.name == "fork_worker").run(context)
    if context.role == "worker":
        os.dup(1)


BAD = {
    "devices": bind_all_devices,
    "proc": mount_whole_proc,
    "close_descriptors": keep_all_descriptors,
    "fork_worker": fork_leaky_worker,
}


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("--without", default="")
    parser.add_argument("--bad", default="")
    parser.add_argument("--sabotage", action="store_true")
    parser.add_argument("--torch", action="store_true")
    arguments = parser.parse_args()
    gone, bad = set(arguments.without.split(",")), set(arguments.bad.split(","))
    steps = tuple(
        step._replace(run=BAD[step.name]) if step.name in bad else step for step in STEPS if step.name not in gone
    )
    if arguments.sabotage:
        steps = tuple(map(sabotaged, steps))
    if arguments.torch:
        zygote.warm_up()
    zygote.serve(arguments.socket, 7, steps=steps, entry=shell)


if __name__ == "__main__":
    main()
