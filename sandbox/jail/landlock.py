"""Landlock: a second wall around files, ports and signals, by another part of the kernel than mounts and namespaces.

What is not granted here is refused whatever the mount tree shows: a mount that should not be there is no use to a
worker. Rights came with kernels (landlock(7)); each kernel gets all that it knows, and the rest is left to the
namespaces, which carry the promise alone on an old one.
"""

import enum
import os
from collections.abc import Callable, Iterator
from typing import Final

from bedsit.sandbox.jail import libc, root
from bedsit.sandbox.jail.context import Context


class Right(enum.IntFlag):
    """LANDLOCK_ACCESS_FS_* of linux/landlock.h."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


class BadRules(Exception):
    """The kernel has landlock, but not for these rules: the order is broken, and no slot is built from such a one."""


# The rights that came with an ABI: 2 is kernel 5.19, 3 is 6.2, 5 is 6.10. Whatever is new later is not ours to grant.
_SINCE: Final = {1: (Right.MAKE_SYM << 1) - 1, 2: Right.REFER, 3: Right.TRUNCATE, 5: Right.IOCTL_DEV}
_TCP: Final = 0b11  # bind and connect, since ABI 4 (6.7): handled and never granted
_SCOPES: Final = 0b11  # abstract sockets and signals of others, since ABI 6 (6.12)
_QUIET_SINCE: Final = 7  # kernel 6.15, the first that writes refusals to the audit log

_READ: Final = Right.READ_FILE | Right.READ_DIR
# /dev/null. Not /proc: there a process makes the kernel treat it better (oom_score_adj, autogroup); a thread can be
# named without it (prctl).
_READ_AND_WRITE: Final = _READ | Right.WRITE_FILE | Right.TRUNCATE
# Links, pipes and device nodes cannot be made.
_OWN: Final = (
    _READ_AND_WRITE
    | Right.REMOVE_DIR
    | Right.REMOVE_FILE
    | Right.MAKE_DIR
    | Right.MAKE_REG
    | Right.MAKE_SOCK
    | Right.REFER
)


def restrict(context: Context, find_abi: Callable[[], int] = libc.landlock_abi) -> None:
    """Give up all access to files but what is granted here, for good and for all children.

    Raises OSError, with nothing changed, on a kernel without landlock (ENOSYS) or with it off (EOPNOTSUPP), and
    BadRules for whatever goes wrong later.
    """
    abi = find_abi()
    handled = find_rights(abi)
    ruleset = libc.landlock_create_ruleset(handled, _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)  # noqa: PLR2004
    try:
        for path, rights in _grants(context):
            _grant(ruleset, path, rights & handled)
        libc.landlock_restrict_self(ruleset, quiet=abi >= _QUIET_SINCE)
    except OSError as e:
        raise BadRules(str(e)) from e
    finally:
        os.close(ruleset)


def find_rights(abi: int) -> Right:
    """All rights over files that a kernel with this ABI can refuse."""
    found = Right(0)
    for since, rights in _SINCE.items():
        if abi >= since:
            found |= rights
    return found


def is_refusing() -> bool:
    """Try what only landlock refuses: to list the root folder, which is readable and which nobody has to list."""
    try:
        os.listdir("/")
    except PermissionError:
        return True
    return False


def _grants(context: Context) -> Iterator[tuple[str, Right]]:
    programs = Right.EXECUTE if context.order.profile == "subprocess" and context.role == "worker" else Right(0)
    for tree in (*context.house.trees, *root.find_system_folders()):
        yield tree, _READ | programs
    for folder in ("/etc", "/run"):
        yield folder, _READ
    if context.role == "init":
        return  # it has its logs open, and reads at most its own code
    yield "/proc", _READ
    yield "/dev", _READ_AND_WRITE
    yield from _device_grants(context)
    for folder in root.SCRATCH:
        yield folder, _OWN


def _device_grants(context: Context) -> Iterator[tuple[str, Right]]:
    """What a slot may do that was born for a device: ioctl(2) on exactly its nodes, and naming its own threads.

    CUDA does not start where a thread cannot be named through /proc/self/task/<tid>/comm. That is this process's own
    folder, which lies in no other slot's /proc; what else can be written there asks for capabilities to do harm.
    """
    for node in context.order.nodes:
        yield f"/dev/{node.name}", Right.READ_FILE | Right.WRITE_FILE | Right.IOCTL_DEV
    if context.order.nodes:
        yield "/proc/self/task", Right.WRITE_FILE | Right.TRUNCATE


def _grant(ruleset: int, path: str, rights: Right) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        libc.landlock_add_rule(ruleset, rights, fd)
    finally:
        os.close(fd)
