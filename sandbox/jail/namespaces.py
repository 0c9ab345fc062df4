"""Namespaces: what a slot can see of processes, mounts, networks, IPC objects, host names, groups and users."""

import os
import socket

from bedsit.sandbox.jail import libc
from bedsit.sandbox.jail.context import INIT_ID, WORKER_ID, Context

# JUSTIFICATION: unshare(2) is what a jail is made of; Python has it from 3.12 on.
# SAFETY: all run in a child of the zygote that never returns to the zygote's code.


def enter_mount_namespace(_: Context) -> None:
    """A private copy of the mount tree: nothing mounted from here on is seen by the box, or the other way round."""
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)


def enter_network_namespace(_: Context) -> None:
    """A network of nothing but a loopback that is down; the box's abstract sockets are out of reach too."""
    libc.unshare(libc.CLONE_NEWNET)


def enter_ipc_namespace(_: Context) -> None:
    """Own System V objects and POSIX message queues."""
    libc.unshare(libc.CLONE_NEWIPC)


def enter_uts_namespace(_: Context) -> None:
    """An own host name, the same in every slot: a tenant does not learn which box it is on."""
    libc.unshare(libc.CLONE_NEWUTS)
    socket.sethostname("slot")


def enter_cgroup_namespace(_: Context) -> None:
    """The slot's own group becomes "/"."""
    libc.unshare(libc.CLONE_NEWCGROUP)


def enter_user_namespace(_: Context) -> None:
    """Leave the box's users behind. Raises OSError, with nothing changed, on a box that forbids user namespaces."""
    libc.unshare(libc.CLONE_NEWUSER)


def open_sysctl(context: Context) -> None:
    """Keep the box's /proc/sys/user at hand for `forbid_nesting`, which closes it."""
    context.sysctl = os.open("/proc/sys/user", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def map_ids(context: Context) -> None:
    """Only two users exist from here on, init (1000) and worker (1001), and both are nobody special on the box.

    The zygote writes the maps, since a process may not map ids that it does not hold. Without a user namespace the
    two ids stay what they are on the box.
    """
    if "user_namespace" not in context.missing:
        context.ask("map")
        context.ids = (INIT_ID, WORKER_ID)


def forbid_nesting(context: Context) -> None:
    """No user namespace inside this one: in it a worker would have every capability over namespaces of its own making.

    That is how most of the kernel's code that only root can reach becomes reachable for everybody. The limit is per
    user namespace and cannot be raised from inside without CAP_SYS_RESOURCE (namespaces(7), user_namespaces(7)).
    """
    if "user_namespace" not in context.missing:
        limit = os.open("max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC, dir_fd=context.sysctl)
        os.write(limit, b"0")
        os.close(limit)
    os.close(context.sysctl)
