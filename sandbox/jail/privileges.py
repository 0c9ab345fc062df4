"""Privileges: user ids, capabilities, and what is left of a parent's power over its child."""

import errno
import os
import signal
from typing import Final

from bedsit.sandbox.jail import libc
from bedsit.sandbox.jail.context import Context

# noroot, no_setuid_fixup, keep_caps off, no ambient raise: each with its lock (capabilities(7), linux/securebits.h).
_SECUREBITS_LOCKED: Final = 0b1110_1111
_CAPABILITIES: Final = 64


def drop_groups(_: Context) -> None:
    """No supplementary group of root's comes along."""
    os.setgroups([])


def drop_keys(_: Context) -> None:
    """A new, empty session keyring: whoever started the box may hold keys in the one that we inherited."""
    try:
        libc.join_session_keyring()
    except OSError as e:
        # No keyrings in this kernel, or a filter above us that forbids them to all: then there is nothing to read.
        if e.errno not in (errno.ENOSYS, errno.EPERM):
            raise


def drop_bounding_set(_: Context) -> None:
    """No program, however marked, can ever give a capability back. Ends at the first number that the kernel lacks."""
    for capability in range(_CAPABILITIES):
        try:
            libc.prctl(libc.PR_CAPBSET_DROP, capability)
        except OSError as e:
            if e.errno == errno.EINVAL:
                break
            raise
    libc.prctl(libc.PR_SET_SECUREBITS, _SECUREBITS_LOCKED)


def take_own_ids(context: Context) -> None:
    """Become init or worker for good: real, effective and saved ids."""
    os.setresgid(context.own_id, context.own_id, context.own_id)
    os.setresuid(context.own_id, context.own_id, context.own_id)


def drop_capabilities(_: Context) -> None:
    """Permitted, effective and inheritable become empty."""
    libc.clear_capabilities()


def die_with_init(context: Context) -> None:
    """SIGKILL when the slot's init ends; and at once when it has ended already."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != context.init_pid:
        raise ChildProcessError("the slot's init is gone")


def allow_own_proc(_: Context) -> None:
    """The worker owns its own files in /proc/self again: CUDA, for one, writes /proc/self/task/<tid>/comm."""
    libc.prctl(libc.PR_SET_DUMPABLE, 1)


def refuse_trace(_: Context) -> None:
    """Nobody but the box's root may look into init's memory."""
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def refuse_new_privileges(_: Context) -> None:
    """execve(2) never grants anything again."""
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
