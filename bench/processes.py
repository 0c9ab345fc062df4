"""Forked processes of a benchmark: made, pinned to cores, timed by the scheduler, ended by their pid.

They are forks of one parent that has torch loaded with one thread, so that each starts in milliseconds and all run the
same code. That is safe for the reason that it is safe in a zygote: a parent without threads leaves no lock behind.
"""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1


def fork(work: Callable[[], None]) -> int:
    """Run *work* in a child, which ends with this process at the latest; gives its pid.

    The child never returns into the caller's code. What it raises goes to stderr.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # SAFETY: the caller has one thread (see above); the child runs *work* and leaves by os._exit.
    pid = os.fork()
    if pid == 0:
        _run(work, parent)
    return pid


def _run(work: Callable[[], None], parent: int) -> NoReturn:
    code = 1
    try:
        # JUSTIFICATION: a benchmark that is killed must not leave servers behind, and only prctl(2) promises that.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.getppid() == parent:
            work()
            code = 0
    except Exception:  # noqa: BLE001 - the last line of a process
        traceback.print_exc()
    finally:
        os._exit(code)


def end(pid: int) -> None:
    """Kill a child of this process and reap it; a pid that is no child any more is fine."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def reap(pid: int) -> bool:
    """Wait for a child; whether it ended well."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def pin(pids: Iterable[int], cpus: set[int]) -> None:
    """Put every thread of *pids* on *cpus*."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cpus)


def count_cpu_ns(pids: Iterable[int]) -> int:
    """Time that all threads of *pids* have run, by the scheduler's clock (proc_pid_schedstat, kernel documentation)."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total
