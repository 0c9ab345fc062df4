"""What every attempt's source has at hand. Runs in the jailed worker, before the source."""

import ctypes
import os
import platform
from typing import Any, Final

# Those that libc has no function for, or hides (asm/unistd_64.h, asm-generic/unistd.h).
_NUMBERS: Final = {
    "x86_64": {
        "add_key": 248, "bpf": 321, "capset": 126, "chroot": 161, "clock_adjtime": 305, "clock_settime": 227,
        "clone": 56, "execveat": 322, "fork": 57, "getpid": 39, "init_module": 175, "io_uring_setup": 425, "ioctl": 16,
        "kcmp": 312, "kexec_load": 246, "keyctl": 250, "kill": 62, "mlockall": 151, "mount": 165, "move_mount": 429,
        "mq_open": 240, "mmap": 9, "name_to_handle_at": 303, "open_by_handle_at": 304, "open_tree": 428,
        "openat2": 437, "perf_event_open": 298, "personality": 135, "pidfd_getfd": 438, "pidfd_open": 434,
        "pivot_root": 155, "prctl": 157, "prlimit64": 302, "process_vm_readv": 310, "process_vm_writev": 311,
        "ptrace": 101, "quotactl": 179, "reboot": 169, "request_key": 249, "sched_setscheduler": 144, "setns": 308,
        "sethostname": 170, "settimeofday": 164, "shmat": 30, "shmget": 29, "swapon": 167, "syslog": 103,
        "umount2": 166, "unshare": 272, "userfaultfd": 323, "vfork": 58,
    },
    "aarch64": {
        "add_key": 217, "bpf": 280, "capset": 91, "chroot": 51, "clock_adjtime": 266, "clock_settime": 112,
        "clone": 220, "execveat": 281, "getpid": 172, "init_module": 105, "io_uring_setup": 425, "ioctl": 29,
        "kcmp": 272, "kexec_load": 104, "keyctl": 219, "kill": 129, "mlockall": 230, "mount": 40, "move_mount": 429,
        "mq_open": 180, "mmap": 222, "name_to_handle_at": 264, "open_by_handle_at": 265, "open_tree": 428,
        "openat2": 437, "perf_event_open": 241, "personality": 92, "pidfd_getfd": 438, "pidfd_open": 434,
        "pivot_root": 41, "prctl": 167, "prlimit64": 261, "process_vm_readv": 270, "process_vm_writev": 271,
        "ptrace": 117, "quotactl": 60, "reboot": 142, "request_key": 218, "sched_setscheduler": 119, "setns": 268,
        "sethostname": 161, "settimeofday": 170, "shmat": 196, "shmget": 194, "swapon": 224, "syslog": 116,
        "umount2": 39, "unshare": 97, "userfaultfd": 282,
    },
}  # fmt: skip

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name: str | int, *arguments: Any) -> int:
    """Make a system call, by name or number. Returns its result or raises OSError."""
    number = name if isinstance(name, int) else _NUMBERS[platform.machine()][name]
    plain = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    result = int(libc.syscall(ctypes.c_long(number), *plain))
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def every(outcomes: list[str]) -> str | list[str]:
    """The outcome that all have in common, or all of them."""
    return outcomes[0] if len(set(outcomes)) == 1 else outcomes
