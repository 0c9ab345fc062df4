"""Limits: the slot's cgroup, its place before the box's OOM killer, and its rlimits."""

import os
import resource
from typing import Final

from bedsit.sandbox.jail.context import Context

_OOM_SCORE: Final = 900
_FSIZE_BYTES: Final = 1 << 30


def join_cgroup(context: Context) -> None:
    """Put this process into its slot's groups of the v1 hierarchies, through files that the daemon opened.

    "0" means the writer itself. A v1 `tasks` file takes one thread and is done in microseconds. cgroup2 takes whole
    processes only and may wait some 10 ms for an RCU grace period, idle (kernel/cgroup, cgroup_threadgroup_rwsem):
    that is why it is joined at birth, and here only where the kernel cannot do that.
    """
    for fd in context.joins:
        os.write(fd, b"0")
    if not context.born_in_group:
        procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=context.group)
        os.write(procs, b"0")
        os.close(procs)


def offer_to_oom_killer(_: Context) -> None:
    """When the whole box is out of memory, a slot goes before anything of the box's own."""
    with open("/proc/self/oom_score_adj", "w", encoding="utf-8") as file:
        file.write(str(_OOM_SCORE))


def rlimits(bundle_bytes: int) -> dict[int, int]:
    """The rlimits of a slot's processes, soft and hard alike.

    No RLIMIT_AS: torch reserves address space that it never touches. A file may be as long as the bundle folder is big.
    """
    return {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 1024,
        resource.RLIMIT_NPROC: 256,
        resource.RLIMIT_FSIZE: max(_FSIZE_BYTES, bundle_bytes),
        resource.RLIMIT_MEMLOCK: 64 << 10,
        resource.RLIMIT_STACK: 8 << 20,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }


def set_rlimits(context: Context) -> None:
    """Bound what the kernel counts by process."""
    for which, value in rlimits(context.order.bundle_bytes).items():
        resource.setrlimit(which, (value, value))
