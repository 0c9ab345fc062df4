"""How long a thread may run before others get their turn: its slice, as the kernel's fair scheduler takes it.

Where others have shorter ones, a thread with a long slice gives way to them at once, as far as they have time to their
credit: they wait less, and get no more (Linux 6.12, kernel/sched/fair.c, PREEMPT_SHORT). A group is as urgent as the
most urgent thread in it that wants to run (6.13). Older kernels take the call and do nothing.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: The longest that the kernel takes, in microseconds; 0 stands for its own choice, a few milliseconds.
LONGEST_US: Final = 100_000
_NUMBER: Final = {"x86_64": 314, "aarch64": 274}.get(platform.machine())  # sched_setattr(2)
_ATTR: Final = struct.Struct("<IIQiIQQQ")  # struct sched_attr, its first version
_KEEP_POLICY: Final = 0x08
_libc: Final = ctypes.CDLL(None, use_errno=True)


def set_slice(threads: Iterable[int], slice_us: int) -> None:
    """Give these threads that slice; those that they make later inherit it. One that has ended meanwhile has none."""
    for thread in threads if _NUMBER is not None else ():
        try:
            nice = os.getpriority(os.PRIO_PROCESS, thread)
        except ProcessLookupError:
            continue
        attr = _ATTR.pack(_ATTR.size, 0, _KEEP_POLICY, nice, 0, slice_us * 1000, 0, 0)
        # JUSTIFICATION: neither Python nor glibc has it before 2.41. SAFETY: the kernel reads what attr says it has.
        _libc.syscall(_NUMBER, thread, attr, 0)


def list_threads(pid: int) -> list[int]:
    """The threads of a process, none of one that has ended."""
    try:
        return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []
