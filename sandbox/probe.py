"""What this box offers for the walls, and what is exposed where it does not. Changes nothing; needs no root.

Run as ``python -I -m bedsit.sandbox.probe [--json]``.
"""

import argparse
import ctypes
import dataclasses
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import v1, v2
from bedsit.sandbox.cgroup.detect import UNIFIED, find_own_groups
from bedsit.sandbox.trees import find_closed_folder, find_trees

_KERNEL: Final = (5, 14)
_SYS_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_SHM_BYTES: Final = 1 << 30
#: What this version does without on a sound box.
_OPTIONAL: Final = ("nvidia driver", "landlock", "seccomp")


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: is it there, what it is for or what its lack exposes, and how to mend that.

    A box without what is not *required* is sound.
    """

    name: str
    ok: bool
    exposes: str
    mend: str
    required: bool


def probe() -> list[Finding]:
    """All findings, the most important first."""
    return [_find(name, check, exposes, mend) for name, check, exposes, mend in _CHECKS]


def main() -> None:
    """Print the findings."""
    parser = argparse.ArgumentParser(prog="bedsit.sandbox.probe")
    parser.add_argument("--json", action="store_true")
    findings = probe()
    if parser.parse_args().json:
        sys.stdout.write(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(f"{'ok     ' if finding.ok else 'missing'} {finding.name}: {finding.exposes}\n")


def _find(name: str, check: Callable[[], bool], exposes: str, mend: str) -> Finding:
    try:
        ok = check()
    except (OSError, ValueError, BedsitError):
        ok = False
    return Finding(name, ok, exposes, "" if ok else mend, name not in _OPTIONAL)


def _kernel() -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    return bool(numbers) and tuple(map(int, numbers.groups())) >= _KERNEL if numbers else False


def _limits() -> bool:
    own = find_own_groups()
    return v2.has_controllers(own[UNIFIED]) or all(name in own for name in v1.CONTROLLERS)


def _namespaces() -> bool:
    return {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} <= set(os.listdir("/proc/self/ns"))


def _user_namespaces() -> bool:
    return int(Path("/proc/sys/user/max_user_namespaces").read_text(encoding="ascii")) > 0


def _swap_is_bounded() -> bool:
    swaps = Path("/proc/swaps").read_text(encoding="utf-8").splitlines()[1:]
    own = find_own_groups()
    names = ((own.get(UNIFIED), "memory.swap.current"), (own.get("memory"), "memory.memsw.limit_in_bytes"))
    return not swaps or any(folder is not None and (folder / name).exists() for folder, name in names)


def _landlock() -> bool:
    # JUSTIFICATION: glibc has no wrapper. SAFETY: with this flag the call only answers its version (landlock(7)).
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    numbers = (_SYS_LANDLOCK_CREATE_RULESET, 0, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    return int(call(*map(ctypes.c_long, numbers))) > 0


def _seccomp() -> bool:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text(encoding="ascii").split()
    return {"kill_process", "errno"} <= set(actions)


def _shm() -> bool:
    room = os.statvfs("/dev/shm")
    return room.f_blocks * room.f_frsize >= _SHM_BYTES


def _readable() -> bool:
    return all(find_closed_folder(tree) is None for tree in find_trees())


_CHECKS: Final[tuple[tuple[str, Callable[[], bool], str, str], ...]] = (
    ("root", lambda: os.geteuid() == 0, "only root can build slots", "run bedsit as root"),
    (
        "kernel",
        _kernel,
        "Linux 5.14 or later, for cgroup.kill and recursive read-only mounts",
        "boot a newer kernel",
    ),
    ("namespaces", _namespaces, "a slot that sees nothing of the box", "boot a kernel with all seven namespaces"),
    (
        "cgroup2",
        lambda: UNIFIED in find_own_groups(),
        "the end of a slot: kill, freeze, and knowing that it is empty",
        "mount -t cgroup2 none /sys/fs/cgroup/unified",
    ),
    (
        "limits",
        _limits,
        "one tenant's memory, processes and processor time do not become another's shortage",
        "enable the memory, pids and cpu controllers (v2, or one v1 hierarchy each)",
    ),
    (
        "swap accounting",
        _swap_is_bounded,
        "a tenant at its memory limit cannot push the box into swap",
        "boot with swapaccount=1, or swapoff -a",
    ),
    (
        "user namespaces",
        _user_namespaces,
        "root inside a slot would be nobody outside; without, a slot holds the box's ids, still without capabilities",
        "sysctl user.max_user_namespaces=10000",
    ),
    (
        "landlock",
        _landlock,
        "a second wall around files (not used in this version)",
        "boot with landlock in lsm=",
    ),
    (
        "seccomp",
        _seccomp,
        "a narrow door to the kernel (not used in this version)",
        "boot a kernel with CONFIG_SECCOMP_FILTER",
    ),
    (
        "python",
        _readable,
        "workers read Python and its packages under users of their own",
        "chmod -R o+rX the folder of the interpreter and that of the virtual environment",
    ),
    ("shared memory", _shm, "tensors travel through it: 1 GiB or more", "mount -o remount,size=50% /dev/shm"),
    (
        "nvidia driver",
        lambda: Path("/proc/driver/nvidia/version").exists(),
        "GPU slices; without one, slices are processor cores",
        "install the NVIDIA driver, if this box has a GPU",
    ),
)


if __name__ == "__main__":
    main()
