"""The few system calls that Python 3.11 has no function for, each as a plain function that raises OSError.

JUSTIFICATION: ctypes rather than a package: six calls, auditable on one page, and nothing to build on the box.
SAFETY: argument types are declared, so a wrong argument is a TypeError here and not a wild pointer there.
"""

import ctypes
import functools
import os
import platform
import struct
from typing import Final

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000

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
_SYS_MOUNT_SETATTR: Final = 442  # one number on every architecture; glibc has no wrapper before 2.36
_SYS_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_CAPABILITY_VERSION_3: Final = 0x2008_0522


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    text, number, flags = ctypes.c_char_p, ctypes.c_int, ctypes.c_ulong
    libc.unshare.argtypes = [number]
    libc.setns.argtypes = [number, number]
    libc.mount.argtypes = [text, text, text, flags, text]
    libc.umount2.argtypes = [text, number]
    libc.pivot_root.argtypes = [text, text]
    libc.prctl.argtypes = [number, flags, flags, flags, flags]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, number]
    libc.capset.argtypes = [text, text]
    libc.syscall.restype = ctypes.c_long
    return libc


def load() -> None:
    """Find the C library now, so that no fork has to."""
    _libc()


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc().unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _check(_libc().setns(fd, kind), f"setns({kind:#x})")


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
