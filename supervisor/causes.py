"""Why a slot ended, in one word and one sentence; both are ours, never the tenant's.

    exit      it ended by itself, with a status
    signal    a signal ended it: its own fault, or somebody's on the box
    seccomp   it made a system call that the jail kills for
    oom       the kernel ended it at its memory limit, or we did far above that of its GPU
    pids      it ended because it could have no more processes
    timeout   we ended it: it was not ready, or not done, in time
    killed    we ended it for another reason
    unknown   nobody saw how

A tenant's death counts against it; that of a slot which was only being replaced does not.
"""

import os
import signal
from dataclasses import dataclass
from typing import Final, Literal

CauseKind = Literal["exit", "signal", "seccomp", "oom", "pids", "timeout", "killed", "unknown"]


@dataclass(frozen=True)
class Cause:
    """*kind* is for programs, *text* for people."""

    kind: CauseKind
    text: str

    @property
    def is_orderly(self) -> bool:
        """Whether the worker ended by itself and said that all was well."""
        return self == _ORDERLY

    def __str__(self) -> str:
        return self.text


_ORDERLY: Final = Cause("exit", "exit status 0")


def classify(status: int | None, oom_kills: int, pids_denied: int, memory_bytes: int, pids_max: int) -> Cause:
    """The cause behind a raw wait *status* (None: nobody saw it) and the counters of the slot's cgroup.

    Out of memory goes first: the kernel's kill looks like any SIGKILL. A refused fork is believed only when the worker
    ended as one that could not fork does (an uncaught exception or abort), because a worker may survive the refusal and
    end of something else much later.
    """
    if oom_kills:
        return Cause("oom", f"out of memory: limit {memory_bytes >> 20} MiB")
    if status is None:
        return Cause("unknown", "gone without a status")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if pids_denied and number == signal.SIGABRT:
            return Cause("pids", f"out of processes: limit {pids_max}")
        if number == signal.SIGSYS:
            return Cause("seccomp", "a system call that the jail kills for (SIGSYS)")
        return Cause("signal", f"signal {number} ({_signal_name(number)})")
    code = os.waitstatus_to_exitcode(status)
    if pids_denied and code == 1:
        return Cause("pids", f"out of processes: limit {pids_max}")
    return Cause("exit", f"exit status {code}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time"
