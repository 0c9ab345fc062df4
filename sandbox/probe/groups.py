"""What this box's control groups offer: an end for a slot, limits, and swap that is counted. Reads only."""

from pathlib import Path
from typing import Final

from bedsit.sandbox.cgroup import v1, v2
from bedsit.sandbox.cgroup.detect import UNIFIED, find_own_groups
from bedsit.sandbox.probe.finding import Missing

SYSTEMD: Final = Path("/run/systemd/system")  # sd_booted(3)


def find_unified() -> Path:
    """The cgroup2 group that this process is in."""
    own = find_own_groups()
    if UNIFIED not in own:
        raise Missing("no cgroup2 hierarchy that this process is in")
    return own[UNIFIED]


def find_end() -> str:
    """The files that end a group. The root of a hierarchy has none; then any group below it tells."""
    own = find_unified()
    found = next((group for group in (own, *sorted(own.iterdir())) if (group / "cgroup.kill").exists()), None)
    if found is not None and not (found / "cgroup.freeze").exists():
        raise Missing("no cgroup.freeze")
    if found is None and any((group / "cgroup.events").exists() for group in own.iterdir() if group.is_dir()):
        raise Missing("no cgroup.kill")
    return "cgroup.kill, cgroup.freeze" if found else "no group to look at; this kernel has both"


def find_controller(name: str, v1_name: str) -> str:
    """In cgroup2 where that has all that limits need, else in a v1 hierarchy of its own: limits are never split."""
    own = find_own_groups()
    if (
        UNIFIED in own
        and v2.has_controllers(own[UNIFIED])
        and name in (own[UNIFIED] / "cgroup.controllers").read_text(encoding="ascii").split()
    ):
        return "cgroup2"
    held = {
        controller
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        for controller in line.split(":", 2)[1].split(",")
    }
    if v1_name in held and (v1_name not in v1.CONTROLLERS or v1_name in own):
        return f"cgroup v1 ({v1_name})"
    for line in Path("/proc/cgroups").read_text(encoding="ascii").splitlines():
        words = line.split()
        if words[0] == v1_name and words[3] == "0":
            raise Missing(
                "switched off at boot", f"boot without cgroup_disable={v1_name}, on Debian with cgroup_enable={v1_name}"
            )
    top = Path("/sys/fs/cgroup/cgroup.controllers")
    if top.exists():
        if SYSTEMD.is_dir() and name in top.read_text(encoding="ascii").split():
            # A login shell's group seldom has it; what counts is that a generation's unit, which is delegated, gets it.
            return "cgroup2, below units with Delegate=yes"
        raise Missing("not handed down to this group")
    raise Missing("in no hierarchy", f"mount -t cgroup -o {v1_name} none /sys/fs/cgroup/{v1_name}")


def find_swap_accounting() -> str:
    """What counts swap against a group, where there is any swap."""
    swaps = Path("/proc/swaps").read_text(encoding="utf-8").splitlines()[1:]
    if not swaps:
        return "no swap"
    own = find_own_groups()
    top = v2.find_top(own[UNIFIED]) if UNIFIED in own else None
    # The root of cgroup2 has no such file; the groups below it do.
    for folder, name in ((top, "memory.swap.max"), (own.get("memory"), "memory.memsw.limit_in_bytes")):
        if folder is not None and any((group / name).exists() for group in (folder, *folder.iterdir())):
            return name
    raise Missing(f"{len(swaps)} swap areas, none of them accounted")
