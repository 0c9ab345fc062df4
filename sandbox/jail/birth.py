"""A slot's first process: born into its group and its pid namespace, by the best call that the kernel has."""

import errno
from collections.abc import Callable
from typing import Final

from bedsit.sandbox.jail import libc
from bedsit.sandbox.jail.context import Context

Way = Callable[[int, int], tuple[int, int]]

#: The best first.
WAYS: Final[tuple[Way, ...]] = (libc.clone3, libc.clone)
# "I do not know this call", "nor these arguments", or a filter around the whole box says so. What is truly forbidden
# is refused by the older call as well; anything else, such as a group that is none, is an error and no reason to try.
_TRY_OLDER: Final = frozenset({errno.ENOSYS, errno.E2BIG, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP})


def ask_pid_namespace(context: Context) -> None:
    """The slot's first process is pid 1 of a namespace of its own; the zygote stays where it is."""
    context.birth |= libc.CLONE_NEWPID


def ask_own_group(context: Context) -> None:
    """The slot's first process is in its cgroup2 group before it has run one instruction."""
    context.birth |= libc.CLONE_INTO_CGROUP


def bear(context: Context, ways: tuple[Way, ...]) -> tuple[int, int]:
    """Fork the slot's first process as the context asks. Gives its pid and a pidfd; in the child 0 and -1.

    Raises OSError. The child goes on in `libc.clone3`'s terms: one thread, no library with fork handlers.
    """
    for number, way in enumerate(ways, 1):
        context.born_in_group = way is libc.clone3 and bool(context.birth & libc.CLONE_INTO_CGROUP)
        try:
            return way(context.birth, context.group)
        except OSError as e:
            if e.errno not in _TRY_OLDER or number == len(ways):
                raise
    raise AssertionError("there is a way")
