"""The group that systemd delegated to one generation's unit: the zygote goes into a leaf, slots lie beside it.

    bedsit-zygote@N.service/     systemd's; a group with controllers for its children may hold no process of its own
    ├── zygote/                  the zygote
    └── slots/                   <slot>/ ...

Only the two folders below the unit's are ours to write to (systemd, docs/CGROUP_DELEGATION.md); its own goes when the
unit and all that was below it have ended.
"""

import contextlib
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup.backend import SLOTS, list_folders, naming, read, read_keyed, remove_folder, write
from bedsit.sandbox.cgroup.detect import UNIFIED, find_own_groups
from bedsit.sandbox.cgroup.lifecycle import PROCS

ZYGOTE: Final = "zygote"


def find_group(pid: int) -> Path:
    """The cgroup2 group that was given to the zygote *pid*, whether it sits in its leaf already or not.

    Raises FileNotFoundError when it has ended.
    """
    group = find_own_groups(str(pid)).get(UNIFIED)
    if group is None:
        raise FileNotFoundError(2, "not below any cgroup2 mount of this daemon", f"/proc/{pid}/cgroup")
    return group.parent if group.name == ZYGOTE else group


def settle(group: Path, pid: int) -> None:
    """Move the zygote *pid* into its leaf. Raises ``cgroup.refused``."""
    leaf = group / ZYGOTE
    with naming(leaf):
        leaf.mkdir(exist_ok=True)
    if pid not in map(int, read(leaf / PROCS).split()):
        write(leaf / PROCS, pid)


def list_slots(group: Path) -> list[str]:
    """The slots that lie in *group*."""
    return list_folders(group / SLOTS)


def kill(group: Path) -> None:
    """SIGKILL to the zygote and everything in its slots. Returns at once; wait until `is_empty`."""
    for name in (ZYGOTE, SLOTS):
        with contextlib.suppress(BedsitError):  # there is no such folder
            write(group / name / "cgroup.kill", 1)


def is_empty(group: Path) -> bool:
    """Whether nothing runs below *group*, or it is gone."""
    try:
        return not read_keyed(group / "cgroup.events")["populated"]
    except OSError:
        return True


def remove(group: Path) -> None:
    """Remove both folders. Raises ``cgroup.refused`` while anything is in them."""
    for name in (SLOTS, ZYGOTE):
        remove_folder(group / name)
