"""A long-lived process that this one started or found: known by its pidfd."""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import error

_PR_SET_CHILD_SUBREAPER: Final = 36
# All a daemon of ours needs; -I makes Python ignore its own variables anyway.
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@dataclass(slots=True)
class Process:
    """A running process. *status* is its exit status (negative: signal) once it has ended as our child."""

    pid: int
    pidfd: int
    is_child: bool
    since: float = field(default_factory=time.monotonic)
    status: int | None = None

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to this very process; nothing happens if it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            return

    def await_end(self, timeout_s: float = 0.0) -> bool:
        """Whether it has ended, waiting at most so long for it. Works for any process, ours or not (pidfd_open(2))."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def protect(self, oom_score_adj: int) -> None:
        """Tell the kernel how willingly to kill it when memory runs out: workers go first."""
        Path(f"/proc/{self.pid}/oom_score_adj").write_text(f"{oom_score_adj}\n", encoding="ascii")

    def describe_end(self) -> str:
        """``exit status 3``, ``signal 9 (SIGKILL)``, or that nobody knows, since it was not our child."""
        if self.status is None:
            return "ended"
        if self.status < 0:
            return f"signal {-self.status} ({signal.Signals(-self.status).name})"
        return f"exit status {self.status}"

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self.pidfd)


def find_module(name: str) -> tuple[str, ...]:
    """The command that runs a module of ours with this very interpreter."""
    return (sys.executable, "-I", "-m", name)


def start_process(command: Sequence[str], output_fd: int, keep_fds: Sequence[int] = ()) -> Process:
    """Run a command in its own session, reading nothing, writing to *output_fd*.

    Not through a shell, not with our environment. Of our descriptors it gets *keep_fds*, which are made inheritable.
    """
    for fd in keep_fds:
        os.set_inheritable(fd, True)
    pid = os.posix_spawn(
        command[0],
        list(command),
        _ENVIRONMENT,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output_fd, 1),
            (os.POSIX_SPAWN_DUP2, output_fd, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ),
    )
    # SAFETY: our own child, which nobody has reaped yet: the number is still its.
    return Process(pid, os.pidfd_open(pid), is_child=True)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent dies, so that they can be reaped. Raises ``internal``."""
    # JUSTIFICATION: the standard library has no prctl. SAFETY: integers only.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise error("internal", f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")


def reap_children(known: Sequence[Process]) -> None:
    """Collect every child that has ended; note the status of the *known* ones."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for process in known:
            if process.is_child and process.pid == pid and process.status is None:
                process.status = os.waitstatus_to_exitcode(status)
