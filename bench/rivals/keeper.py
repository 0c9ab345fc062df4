"""Keeps a server's processes together, so that all of them can be found, and none outlives the benchmark.

A keeper is a fork of the benchmark. Whatever a server's processes leave behind becomes the keeper's child
(PR_SET_CHILD_SUBREAPER, prctl(2)), so the tree below it is the server, however that forks, renames or detaches itself.
When the benchmark ends in whatever way, the kernel asks the keeper to end its tree.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from bench.processes import fork
from bench.rivals.rival import Command

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
#: How long a server's first processes may take to end everything, and how long all may when each was asked.
_GRACE_S: Final = 1.5
_PATIENCE_S: Final = 10.0
#: How long the benchmark waits for a keeper, and then ends its tree itself.
_DEADLINE_S: Final = 20.0
_LOOK_EVERY_S: Final = 0.02


def start_keeper(commands: Sequence[Command], folder: Path, log: Path) -> int:
    """Start *commands* in *folder*, what they say goes to *log*; gives the keeper's pid.

    The keeper ends when the first of them does, or by SIGTERM; before, it ends all others and removes the folder.
    """
    return fork(lambda: _keep(commands, folder, log))


def find_tree(keeper: int) -> list[int]:
    """The pids below a keeper: the server's."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process.pid for process in psutil.Process(keeper).children(recursive=True)]
    return []


def signal_tree(keeper: int, number: signal.Signals) -> None:
    """Send a signal to all below a keeper."""
    with contextlib.suppress(psutil.NoSuchProcess):
        _signal(psutil.Process(keeper).children(recursive=True), number)


def stop_keeper(keeper: int) -> None:
    """End a keeper and all that it keeps, and wait until they are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper, signal.SIGTERM)
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        if _reap(keeper):
            return
        time.sleep(_LOOK_EVERY_S)
    _signal(psutil.Process(keeper).children(recursive=True), signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)


def has_ended(keeper: int) -> bool:
    """Whether a keeper ended, and with it its server. It is left to be reaped."""
    return os.waitid(os.P_PID, keeper, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _keep(commands: Sequence[Command], folder: Path, log: Path) -> None:
    # Blocked, so that it only wakes the wait below. Not for the server: a blocked signal stays so over an exec.
    asked = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    # JUSTIFICATION: only prctl(2) makes a process the parent of its orphans, and lets it hear that its own parent died.
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    children: list[subprocess.Popen[bytes]] = []
    try:
        children += [_spawn(command, folder, asked) for command in commands]
        while all(child.poll() is None for child in children):
            if signal.sigwait(asked) == signal.SIGTERM:
                break
    finally:
        _end_all(children)
        shutil.rmtree(folder, ignore_errors=True)


def _spawn(command: Command, folder: Path, asked: set[signal.Signals]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [str(word) for word in command.argv],
        env={**os.environ, **command.env},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, asked) and None,  # noqa: PLW1509 - no threads here
    )


def _end_all(children: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Ask the first ones, then everyone, then kill whatever is left, until there is nothing."""
    me = psutil.Process()
    _signal(me.children(recursive=True), signal.SIGCONT)
    for child in children:
        child.terminate()
    began = time.monotonic()
    asked = False
    while left := me.children(recursive=True):
        waited_s = time.monotonic() - began
        if waited_s > _GRACE_S and not asked:
            _signal(left, signal.SIGTERM)
            asked = True
        # Those that remove what others left, such as semaphores, end by themselves when these have.
        trackers = [process for process in left if _is_tracker(process)]
        if waited_s > _PATIENCE_S:
            _signal([process for process in left if process not in trackers] or trackers, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(_LOOK_EVERY_S)


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _reap(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid
