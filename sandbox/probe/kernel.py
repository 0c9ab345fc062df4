"""What this kernel can do for a jail, tried for real in a child that ends at once.

Nothing here changes the box: namespaces end with the child, and no mount, group or file is made. Each function says
what it found, or raises OSError with the kernel's answer.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bedsit.sandbox.jail import libc

NAMESPACES: Final = {
    "mount": libc.CLONE_NEWNS,
    "pid": libc.CLONE_NEWPID,
    "network": libc.CLONE_NEWNET,
    "ipc": libc.CLONE_NEWIPC,
    "uts": libc.CLONE_NEWUTS,
    "cgroup": libc.CLONE_NEWCGROUP,
    "user": libc.CLONE_NEWUSER,
}
_SYS_FSOPEN: Final = 430  # this and the next: one number on every architecture
_SYS_FSCONFIG: Final = 431
_FSCONFIG_SET_STRING: Final = 1


def try_namespace(kind: str) -> str:
    """Enter a new namespace of that kind; without root, as root of a new user namespace (user_namespaces(7))."""
    _run_in_child(lambda: _unshare(NAMESPACES[kind]))
    return "entered"


def try_birth_in_group(group: Path) -> str:
    """Be born into a cgroup2 group: the one that this process is in already, so that nothing moves (clone3(2))."""
    fd = os.open(group, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        pid, pidfd = libc.clone3(libc.CLONE_INTO_CGROUP, fd)
        if pid == 0:
            os._exit(0)
        os.close(pidfd)
        os.waitpid(pid, 0)
    finally:
        os.close(fd)
    return "born"


def try_proc_options(options: str) -> str:
    """Configure, but do not make, a procfs with these mount options (proc(5), kernel 5.8)."""
    _run_in_child(lambda: _configure_proc(options))
    return options


def _configure_proc(options: str) -> None:
    if os.geteuid() != 0:
        _unshare(libc.CLONE_NEWNS)
    # JUSTIFICATION: glibc has wrappers from 2.36 on only. SAFETY: two constant texts; the descriptor ends with us.
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    fd = call(ctypes.c_long(_SYS_FSOPEN), ctypes.c_char_p(b"proc"), ctypes.c_long(0))
    _check(fd, "fsopen(proc)")
    for option in options.split(","):
        key, _, value = option.encode().partition(b"=")
        texts = (ctypes.c_char_p(key), ctypes.c_char_p(value))
        numbers = (ctypes.c_long(_SYS_FSCONFIG), ctypes.c_long(fd), ctypes.c_long(_FSCONFIG_SET_STRING))
        _check(call(*numbers, *texts, ctypes.c_long(0)), f"fsconfig({option})")


def _unshare(flag: int) -> None:
    if os.geteuid() != 0:
        flag |= libc.CLONE_NEWUSER
    libc.unshare(flag)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _run_in_child(attempt: Callable[[], None]) -> None:
    """Fork, attempt, end. Raises the child's OSError."""
    # JUSTIFICATION: fork(2): a namespace once entered cannot be left, so somebody else has to.
    # SAFETY: the child makes a few system calls and leaves by os._exit, whatever happens.
    pid = os.fork()
    if pid == 0:
        number = 255
        try:
            attempt()
            number = 0
        except OSError as e:
            number = e.errno or 255
        finally:
            os._exit(number)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number:
        raise OSError(number, os.strerror(number) if 0 < number < 255 else "the attempt failed")  # noqa: PLR2004
