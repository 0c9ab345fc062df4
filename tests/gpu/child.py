"""What a process does that the run or a check started: one check, one peer, or to keep the GPU open."""

import importlib
import os
import socket
import sys
from collections.abc import Sequence

from tests.gpu.cuda import find_nodes
from tests.gpu.plan import CHECKS
from tests.gpu.report import Report


def main(arguments: Sequence[str]) -> int:
    """``check NAME SCALE``, ``peer MODULE:FUNCTION DESCRIPTOR`` or ``keep``."""
    what, *rest = arguments
    if what == "keep":
        return _keep()
    if what == "peer":
        return _serve(rest[0], int(rest[1]))
    return _check(rest[0], float(rest[1]))


def _check(name: str, scale: float) -> int:
    # Whatever a library prints must not come between rows.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    report = Report(out, scale)
    check = CHECKS[name]
    with report.step(check.title):
        module, _, function = check.program.partition(":")
        getattr(importlib.import_module(f"tests.gpu.checks.{module}"), function)(report)
    out.flush()
    # Not sys.exit: what a broken CUDA context does in its destructors is not what was asked.
    os._exit(0)


def _serve(program: str, descriptor: int) -> int:
    module, _, function = program.partition(":")
    with socket.socket(fileno=descriptor) as sock:
        getattr(importlib.import_module(f"tests.gpu.{module}"), function)(sock)
    return 0


def _keep() -> int:
    """Hold the GPU's nodes open until stdin ends: without persistence mode its last user's leaving turns it off.

    Then the next one waits a second or more for it, and every figure of a start has that in it.
    """
    for path in find_nodes():
        if path.removeprefix("/dev/nvidia").isdigit():
            os.open(path, os.O_RDWR | os.O_CLOEXEC)
    print("kept", flush=True)
    sys.stdin.read()
    return 0
