"""The few system calls that Python 3.11 has no function for, each as a plain function that raises OSError.

JUSTIFICATION: ctypes rather than a package: a dozen calls, auditable on one page, and nothing to build on the box.
SAFETY: argument types are declared, so a wrong argument is a TypeError here and not a wild pointer there.
"""

import ctypes
import functools
import os
import platform
import signal
import struct
from typing import Final

CLONE_PIDFD: Final = 0x0000_1000
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000
CLONE_INTO_CGROUP: Final = 0x2_0000_0000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38

_MNT_DETACH: Final = 2
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_MOUNT_ATTR_RDONLY_NOSUID_NODEV: Final = 1 | 2 | 4
_MADV_COLLAPSE: Final = 25
_SYS_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_SYS_CLONE3: Final = 435  # this and the next: one number on every architecture
_SYS_MOUNT_SETATTR: Final = 442  # glibc has no wrapper before 2.36
_SYS_LANDLOCK_CREATE_RULESET: Final = 444  # these three: one number on every architecture
_SYS_LANDLOCK_ADD_RULE: Final = 445
_SYS_LANDLOCK_RESTRICT_SELF: Final = 446
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_SYS_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_LANDLOCK_RULE_PATH_BENEATH: Final = 1
_LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF: Final = 1
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_GET_ACTION_AVAIL: Final = 2
_SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8
_SECCOMP_RET_KILL_PROCESS: Final = 0x8000_0000
_SOCK_FILTER_BYTES: Final = 8
_CAPABILITY_VERSION_3: Final = 0x2008_0522


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    text, number, flags = ctypes.c_char_p, ctypes.c_int, ctypes.c_ulong
    libc.unshare.argtypes = [number]
    libc.mount.argtypes = [text, text, text, flags, text]
    libc.umount2.argtypes = [text, number]
    libc.pivot_root.argtypes = [text, text]
    libc.prctl.argtypes = [number, flags, flags, flags, flags]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, number]
    libc.capset.argtypes = [text, text]
    libc.listxattr.argtypes = [text, text, ctypes.c_size_t]
    libc.syscall.restype = ctypes.c_long
    return libc


@functools.cache
def _fork_libc() -> ctypes.PyDLL:
    """The C library, called without letting go of the interpreter's lock: a child must be born holding it."""
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def load() -> None:
    """Find the C library now, so that no fork has to."""
    _libc()
    _fork_libc()


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def clone3(flags: int, group: int) -> tuple[int, int]:
    """clone3(2), kernel 5.7: fork, with the child in new namespaces and, by CLONE_INTO_CGROUP, in the group *group*.

    Gives the child's pid and a pidfd of it; in the child 0 and -1. See `_fork_raw` for what the child may not do.
    """
    pidfd = ctypes.c_int(-1)
    into = group if flags & CLONE_INTO_CGROUP else 0
    # flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup
    fields = (flags | CLONE_PIDFD, ctypes.addressof(pidfd), 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, into)
    arguments = ctypes.create_string_buffer(struct.pack("=11Q", *fields))
    size = ctypes.c_long(len(arguments) - 1)
    pid = _fork_raw("clone3", ctypes.c_long(_SYS_CLONE3), arguments, size)
    return pid, pidfd.value if pid else -1


def clone(flags: int, group: int) -> tuple[int, int]:
    """clone(2): as clone3, but the child joins no group, which older kernels have no way to ask for."""
    del group
    pidfd = ctypes.c_int(-1)
    wanted = ctypes.c_ulong(flags & ~CLONE_INTO_CGROUP | CLONE_PIDFD | signal.SIGCHLD)
    call = ctypes.c_long(_SYS_CLONE[platform.machine()])
    # The kernel stores a pidfd where it would store the child's id; the rest are a stack, an id and a TLS: none.
    pid = _fork_raw("clone", call, wanted, None, ctypes.byref(pidfd), None, None)
    return pid, pidfd.value if pid else -1


def _fork_raw(what: str, *call: object) -> int:
    """A fork that glibc does not know of, between the calls that CPython's os.fork makes around its own.

    JUSTIFICATION: glibc has no function that forks into a cgroup, and fork(2) with a later move makes every fork on
    the box wait for a grace period (see `limits.join_cgroup`).
    SAFETY: one thread, and the interpreter's lock is held throughout. What glibc's own fork would have done and this
    does not: run the handlers of pthread_atfork(3), and renew the thread id that it keeps. So the child may not start
    threads, nor call a library that counts on those handlers. An ordinary os.fork in the child makes up for all of it.
    """
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _fork_libc().syscall(*call)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    _check(pid, what)
    return int(pid)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc().unshare(flags), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    arguments = (source.encode(), target.encode(), kind and kind.encode(), flags, options and options.encode())
    _check(_libc().mount(*arguments), f"mount({source}, {target}, {kind})")


def make_read_only(target: str) -> None:
    """mount_setattr(2), kernel 5.12: *target* and every mount below it become read-only, nosuid and nodev at once."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY_NOSUID_NODEV, 0, 0, 0)
    result = _libc().syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        ctypes.c_char_p(target.encode()),
        ctypes.c_long(_AT_RECURSIVE),
        ctypes.c_char_p(attributes),
        ctypes.c_long(len(attributes)),
    )
    _check(result, f"mount_setattr({target})")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _check(_libc().pivot_root(new.encode(), old.encode()), f"pivot_root({new}, {old})")


def detach(target: str) -> None:
    """umount2(2) with MNT_DETACH: gone from the tree at once, freed when the last user is."""
    _check(_libc().umount2(target.encode(), _MNT_DETACH), f"umount2({target})")


def prctl(option: int, value: int = 0, more: int = 0) -> None:
    """prctl(2) with up to two arguments."""
    _check(_libc().prctl(option, value, more, 0, 0), f"prctl({option}, {value})")


def listxattr_of_nothing() -> None:
    """listxattr(2) of no path at all, which os.listxattr cannot ask for. Always raises OSError."""
    _check(_libc().listxattr(None, None, 0), "listxattr")


def join_session_keyring() -> None:
    """keyctl(2) with KEYCTL_JOIN_SESSION_KEYRING: an anonymous one of this process's own."""
    call = ctypes.c_long(_SYS_KEYCTL[platform.machine()])
    _check(_libc().syscall(call, ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None), "keyctl")


def clear_capabilities() -> None:
    """capset(2): permitted, effective and inheritable become empty."""
    _check(_libc().capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)), "capset")


def collapse(address: int, length: int) -> None:
    """madvise(2) with MADV_COLLAPSE: move these pages into huge ones now. Changes no content."""
    _check(_libc().madvise(address, length, _MADV_COLLAPSE), "madvise")


def landlock_abi() -> int:
    """The version of landlock that this kernel speaks. Raises OSError when it speaks none, or has it switched off."""
    call = ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET)
    abi = _libc().syscall(call, None, ctypes.c_long(0), ctypes.c_long(_LANDLOCK_CREATE_RULESET_VERSION))
    _check(abi, "landlock_create_ruleset")
    return int(abi)


def landlock_create_ruleset(files: int, ports: int, scopes: int) -> int:
    """landlock_create_ruleset(2): a descriptor of rules that refuse all of these rights. Zeros need no new kernel."""
    fields = [files, ports, scopes]
    while len(fields) > 1 and not fields[-1]:
        fields.pop()
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    call = ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET)
    size = ctypes.c_long(len(attributes))
    ruleset = _libc().syscall(call, ctypes.c_char_p(attributes), size, ctypes.c_long(0))
    _check(ruleset, "landlock_create_ruleset")
    return int(ruleset)


def landlock_add_rule(ruleset: int, rights: int, fd: int) -> None:
    """landlock_add_rule(2): *rights* on whatever *fd* is, and on all below it."""
    result = _libc().syscall(
        ctypes.c_long(_SYS_LANDLOCK_ADD_RULE),
        ctypes.c_long(ruleset),
        ctypes.c_long(_LANDLOCK_RULE_PATH_BENEATH),
        ctypes.c_char_p(struct.pack("=Qi", rights, fd)),
        ctypes.c_long(0),
    )
    _check(result, "landlock_add_rule")


def landlock_restrict_self(ruleset: int, *, quiet: bool) -> None:
    """landlock_restrict_self(2): for this thread and its children, for good. Needs no_new_privs.

    *quiet*, which takes ABI 7: refusals are not written to the box's audit log, which a tenant could fill. What a
    later execve starts is not logged either way.
    """
    call = ctypes.c_long(_SYS_LANDLOCK_RESTRICT_SELF)
    flags = ctypes.c_long(_LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF if quiet else 0)
    _check(_libc().syscall(call, ctypes.c_long(ruleset), flags), "landlock_restrict_self")


def require_filters() -> None:
    """Raises OSError when this kernel cannot filter system calls, or not by ending a process."""
    action = ctypes.c_char_p(struct.pack("=I", _SECCOMP_RET_KILL_PROCESS))
    call = ctypes.c_long(_SYS_SECCOMP[platform.machine()])
    operation = ctypes.c_long(_SECCOMP_GET_ACTION_AVAIL)
    _check(_libc().syscall(call, operation, ctypes.c_long(0), action), "seccomp(GET_ACTION_AVAIL)")


def install_filter(program: bytes, *, listen: bool) -> int | None:
    """seccomp(2), kernel 5.0: *program* (an array of struct sock_filter) stands before every later system call.

    With *listen* gives the descriptor by which another process answers what the program does not decide.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    fields = (len(program) // _SOCK_FILTER_BYTES, ctypes.addressof(instructions))
    result = _libc().syscall(
        ctypes.c_long(_SYS_SECCOMP[platform.machine()]),
        ctypes.c_long(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_long(_SECCOMP_FILTER_FLAG_NEW_LISTENER if listen else 0),
        ctypes.c_char_p(struct.pack("@HP", *fields)),
    )
    _check(result, "seccomp(SET_MODE_FILTER)")
    return int(result) if listen else None
