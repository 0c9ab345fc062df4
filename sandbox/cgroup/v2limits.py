"""One slot's limits in a cgroup2 group: all of them at once, or those of before."""

import contextlib
import errno
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.cgroup import cores, disks
from bedsit.sandbox.cgroup.backend import CPU_PERIOD_US, Limits, read, write

_MEMORY: Final = "memory.max"
_CPUS: Final = "cpuset.cpus"
_EFFECTIVE: Final = "cpuset.cpus.effective"
_WEIGHT: Final = "cpu.weight"
_IDLE: Final = "cpu.idle"
_IO: Final = "io.max"


class V2Limits:
    """The limits of the slot whose group is *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set(self, limits: Limits) -> None:
        """Set all. Raises ``cgroup.refused``; what was set before is then back."""
        wanted = self._want(limits)
        before = {name: self._get(name) for name in wanted}
        try:
            self._write(wanted)
            self._check_cores(limits)
        except BedsitError:
            with contextlib.suppress(BedsitError):
                self._write(before)
            raise

    def find_difference(self, limits: Limits) -> str | None:
        """None when the kernel holds *limits*; else the first file that says something else."""
        for name, value in self._want(limits).items():
            actual = self._get(name)
            if actual != value and not (name == _WEIGHT and limits.cpu_idle):
                return f"{name} is {actual or 'empty'}, not {value or 'empty'}"
        return None

    def _want(self, limits: Limits) -> dict[str, str]:
        """What the files shall say, those that are there."""
        values = {
            _MEMORY: str(limits.memory_pages_bytes),
            # A kernel without swap accounting has no memory.swap.max, and then no swap to bound either.
            "memory.swap.max": "0",
            "pids.max": str(limits.pids_max),
            "cpu.max": f"{limits.quota_us} {CPU_PERIOD_US}",
            _IDLE: str(int(limits.cpu_idle)),
            _WEIGHT: str(limits.cpu_weight),
            _CPUS: self._name_cores(limits.cores),
            _IO: "\n".join(sorted(_describe_disk(disk, limits.io_bps) for disk in disks.list_disks()))
            if limits.io_bps
            else "",
        }
        if limits.cpu_idle and not (self._folder / _IDLE).exists():
            raise error("cgroup.refused", "this kernel's cpu controller has no cpu.idle (5.15)")
        return {name: value for name, value in values.items() if (self._folder / name).exists()}

    def _write(self, values: dict[str, str]) -> None:
        for name, value in values.items():
            if name == _WEIGHT and values.get(_IDLE) == "1":
                continue  # an idle group has no weight (kernel/sched/fair.c, sched_group_set_shares)
            if name == _MEMORY:
                self._make_room(value)
            if name == _IO:
                self._write_disks(value)
            elif self._get(name) != value:
                own = value or (self._all_cores() if name == _CPUS else "")
                write(self._folder / name, own or "\n")  # an empty write would be none

    def _name_cores(self, wanted: str) -> str:
        return self._all_cores() if wanted == cores.ALL else cores.format_cores(cores.parse_cores(wanted))

    def _all_cores(self) -> str:
        """Nothing, or each by its number: once cores were named, a group with processes cannot be without names again.

        The kernel answers ENOSPC (kernel/cgroup/cpuset.c, validate_change).
        """
        above = self._folder.parent / _EFFECTIVE
        named = (self._folder / _CPUS).exists() and self._get(_CPUS)
        return read(above) if named and above.exists() else ""

    def _make_room(self, limit: str) -> None:
        """Less than is in use is refused, as v1 does it: the kernel would take it, and kill the slot to get there."""
        path = self._folder / _MEMORY
        above = 0 if limit == "max" else int(read(self._folder / "memory.current")) - int(limit)
        if above <= 0:
            return
        with contextlib.suppress(BedsitError):
            write(self._folder / "memory.reclaim", above)  # kernel 5.19
        if int(read(self._folder / "memory.current")) > int(limit):
            what = f"the kernel cannot hold {limit!r} in {path}: more is in use"
            raise error("cgroup.refused", what, file=str(path), value=limit, errno=errno.EBUSY)

    def _write_disks(self, lines: str) -> None:
        """Each disk is a write of its own."""
        gone = {line.split()[0]: f"{line.split()[0]} rbps=max wbps=max" for line in self._get(_IO).splitlines()}
        for line in (gone | {line.split()[0]: line for line in lines.splitlines()}).values():
            write(self._folder / _IO, line)

    def _check_cores(self, limits: Limits) -> None:
        """v2 takes any number and gives what there is: that some are missing shows only afterwards."""
        if limits.cores == cores.ALL:
            return
        given = cores.read_cores(self._folder / _EFFECTIVE)
        if given != cores.parse_cores(limits.cores):
            path, has = self._folder / _CPUS, cores.format_cores(given)
            what = f"the kernel gives the cores {has} for {limits.cores!r} in {path}"
            raise error("cgroup.refused", what, file=str(path), value=limits.cores)

    def _get(self, name: str) -> str:
        text = read(self._folder / name)
        if name != _IO:
            return text
        limits = (
            dict(word.split("=") for word in line.split()[1:]) | {"disk": line.split()[0]} for line in text.splitlines()
        )
        held = [_join(limit["disk"], limit["rbps"], limit["wbps"]) for limit in limits]
        return "\n".join(sorted(line for line in held if not line.endswith("rbps=max wbps=max")))


def _describe_disk(disk: str, bps: int) -> str:
    return _join(disk, str(bps), str(bps))


def _join(disk: str, read_bps: str, write_bps: str) -> str:
    return f"{disk} rbps={read_bps} wbps={write_bps}"
