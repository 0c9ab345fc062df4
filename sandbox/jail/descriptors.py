"""Descriptors and forks: what a slot keeps open, and the one fork inside it."""

import os
import socket
from collections.abc import Iterable
from typing import Final

from bedsit.sandbox.jail.context import Context

_END: Final = 1 << 30  # above any descriptor number that the kernel gives out (fs.nr_open)


def close_descriptors(context: Context) -> None:
    """Close everything but the slot's own: no folder of the box survives into the jail (CVE-2024-21626 was one)."""
    _close_all_but({0, 1, 2, context.listener, context.build, context.report.fileno()})


def attach_null(_: Context) -> None:
    """Standard streams become the slot's own /dev/null."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def require_one_thread(_: Context) -> None:
    """A fork copies one thread and every lock; one that another thread holds would then never be released."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"the zygote has {threads} threads and must not fork")


def fork_worker(context: Context) -> None:
    """From here on there are two: init, and the worker as its child with a control socket and two output pipes.

    JUSTIFICATION: fork(2), since a worker is a warm copy of the zygote.
    SAFETY: this process has one thread (the zygote checked before it forked us), so the copy holds no foreign lock.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    context.init_pid = os.getpid()
    context.worker_pid = os.fork()
    if context.worker_pid == 0:
        context.role = "worker"
        context.control = theirs.detach()
        ours.detach()
        os.dup2(out_write, 1)
        os.dup2(err_write, 2)
        _close_all_but({0, 1, 2, context.control, context.report.fileno()})
    else:
        context.role = "init"
        context.control = ours.detach()
        context.outputs = (out_read, err_read)
        for fd in (theirs.detach(), out_write, err_write):
            os.close(fd)


def _close_all_but(keep: Iterable[int]) -> None:
    low = 0
    for fd in (*sorted(keep), _END):
        if low < fd:  # an empty range would mean "all" to the system call below os.closerange
            os.closerange(low, fd)
        low = fd + 1
