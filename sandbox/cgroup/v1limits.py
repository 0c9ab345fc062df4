"""One slot's limits in v1 hierarchies: all of them at once, or those of before."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.cgroup import cores, disks
from bedsit.sandbox.cgroup.backend import CPU_PERIOD_US, Limits
from bedsit.sandbox.cgroup.v1controllers import get_value, set_value

_Values = dict[tuple[str, str], str]
_IO: Final = ("read_bps", "write_bps")
#: cpu.shares of a group with the weight 100, and the least that the kernel takes.
_SHARES: Final = 1024
_LEAST_SHARES: Final = 2


class V1Limits:
    """The limits of the slot whose v1 groups are *groups*, by controller."""

    def __init__(self, groups: Mapping[str, Path]) -> None:
        self._groups = groups

    def set(self, limits: Limits) -> None:
        """Set all. Raises ``cgroup.refused``; what was set before is then back."""
        wanted = self._want(limits)
        before = {key: self._get(*key) for key in wanted}
        try:
            self._write(wanted)
        except BedsitError:
            with contextlib.suppress(BedsitError):
                self._write(before)
            raise

    def find_difference(self, limits: Limits) -> str | None:
        """None when the kernel holds *limits*; else the first file that says something else."""
        for (name, attribute), value in self._want(limits).items():
            actual = self._get(name, attribute)
            if actual != value and not self._is_meaningless(limits, attribute):
                return f"{name} {attribute} is {actual or 'empty'}, not {value or 'empty'}"
        return None

    def _want(self, limits: Limits) -> _Values:
        """What the files shall say."""
        memory = str(limits.memory_pages_bytes)
        wanted = {}
        if (self._groups["memory"] / "memory.memsw.limit_in_bytes").exists():
            wanted["memory", "memsw_limit_in_bytes"] = memory
        wanted["memory", "limit_in_bytes"] = memory
        wanted["pids", "max"] = str(limits.pids_max)
        wanted["cpu", "cfs_period_us"] = str(CPU_PERIOD_US)
        wanted["cpu", "cfs_quota_us"] = str(limits.quota_us)
        if (self._groups["cpu"] / "cpu.idle").exists():
            wanted["cpu", "idle"] = str(int(limits.cpu_idle))
        elif limits.cpu_idle:
            raise error("cgroup.refused", "this kernel's cpu controller has no cpu.idle (5.15)")
        wanted["cpu", "shares"] = str(max(_LEAST_SHARES, round(limits.cpu_weight * _SHARES / 100)))
        if "cpuset" in self._groups:
            all_cores = cores.read_cores(self._groups["cpuset"].parent / "cpuset.cpus")
            chosen = all_cores if limits.cores == cores.ALL else cores.parse_cores(limits.cores)
            wanted["cpuset", "cpus"] = cores.format_cores(chosen)
        if "blkio" in self._groups:
            lines = [f"{disk} {limits.io_bps}" for disk in disks.list_disks()] if limits.io_bps else []
            for attribute in _IO:
                wanted["blkio", attribute] = "\n".join(sorted(lines))
        return wanted

    def _write(self, values: _Values) -> None:
        """In an order that the kernel takes."""
        memory = [key for key in values if key[0] == "memory"]
        # Memory may never be above memory plus swap, not even between two writes: the latter goes first when it grows.
        if int(values[memory[0]]) < int(self._get(*memory[0])):
            memory.reverse()
        for key in [*memory, *(key for key in values if key[0] != "memory")]:
            if key == ("cpu", "shares") and values.get(("cpu", "idle")) == "1":
                continue  # an idle group has no weight (kernel/sched/fair.c, sched_group_set_shares)
            if key[0] == "blkio":
                self._write_disks(key[1], values[key])
            elif self._get(*key) != values[key]:
                set_value(key[0], self._groups[key[0]], key[1], values[key])

    def _write_disks(self, attribute: str, lines: str) -> None:
        """Each disk is a write of its own; 0 takes a limit away."""
        gone = {line.split()[0]: f"{line.split()[0]} 0" for line in self._get("blkio", attribute).splitlines()}
        for line in (gone | {line.split()[0]: line for line in lines.splitlines()}).values():
            set_value("blkio", self._groups["blkio"], attribute, line)

    def _get(self, name: str, attribute: str) -> str:
        value = get_value(name, self._groups[name], attribute)
        text = "-1" if value is None else str(value)  # cgroupspy says None for "no limit"
        return "\n".join(sorted(text.splitlines())) if name == "blkio" else text

    @staticmethod
    def _is_meaningless(limits: Limits, attribute: str) -> bool:
        return attribute == "shares" and limits.cpu_idle
