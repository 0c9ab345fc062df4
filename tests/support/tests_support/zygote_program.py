"""A zygote for tests: the real `serve`, with a step list and a worker's entry of the test's choice.

Run as ``python -I zygote_program.py SOCKET [--without NAME,NAME] [--bad NAME,NAME] [--torch] ...``.
"""

import argparse
import json
import mmap
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bedsit.ipc import seqpacket
from bedsit.sandbox import zygote
from bedsit.sandbox.jail import libc
from bedsit.sandbox.jail.birth import WAYS
from bedsit.sandbox.jail.context import Context
from bedsit.sandbox.jail.steps import STEPS, Step

_ROOM = 16
_sabotage: dict[str, str] = {}
BAD = runpy.run_path(str(Path(__file__).with_name("bad_steps.py")))["BAD"]  # -I: no folder to import from


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


class Gate:
    """Two bytes that a test shares with a slot, wherever that is: "I have stopped", and "go on"."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 2)

    def pause(self) -> None:
        """Stop here until the test says go."""
        self._bytes[0] = 1
        while not self._bytes[1]:
            time.sleep(0.001)


def find_sabotage(context: Context) -> str:
    """What a test wants of this slot: in a file beside the zygote's socket, read while that has a name."""
    slot = context.order.slot
    if context.role == "zygote":
        path = Path(context.house.staging, f"{slot}.sabotage")
        _sabotage[slot] = path.read_text() if path.exists() else ""
    return _sabotage[slot]


def sabotaged(step: Step, gate: Gate | None) -> Step:
    """The same step, but failing, hanging or stopping at the *gate* when a test wants so."""

    def run(context: Context) -> None:
        wanted = find_sabotage(context)
        if wanted == step.name:
            raise PermissionError(1, "sabotage")
        if wanted == f"hang in {step.name}":
            time.sleep(3600)
        if wanted == f"die in {step.name}":
            os._exit(9)  # not a signal: pid 1 of a namespace does not get its own
        step.run(context)
        if gate and wanted == f"stop after {step.name} as {context.role}":
            gate.pause()

    return step._replace(run=run)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("--without", default="")
    parser.add_argument("--bad", default="")
    parser.add_argument("--sabotage", action="store_true")
    parser.add_argument("--gate")
    parser.add_argument("--old-kernel", action="store_true")
    parser.add_argument("--run-first", default="")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--packages", help="one more folder on the path")
    parser.add_argument("--secret", help="what a zygote must not hold")
    arguments = parser.parse_args()
    gone = set(arguments.without.split(","))
    bad = {name.partition(":")[0]: BAD[name] for name in filter(None, arguments.bad.split(","))}
    steps = tuple(step._replace(run=bad.get(step.name, step.run)) for step in STEPS if step.name not in gone)
    if arguments.sabotage:
        gate = Gate(arguments.gate) if arguments.gate else None
        steps = tuple(sabotaged(step, gate) for step in steps)
    if arguments.torch:
        zygote.warm_up()
    if arguments.packages:
        sys.path.append(arguments.packages)
    exec(compile(arguments.run_first, "<first>", "exec"), {})  # what a zygote may have done before it forks
    ways = (libc.clone,) if arguments.old_kernel else WAYS
    zygote.serve(arguments.socket, 7, steps=steps, entry=shell, ways=ways)


if __name__ == "__main__":
    main()
