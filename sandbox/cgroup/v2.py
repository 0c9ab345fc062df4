"""Limits and life cycle through one cgroup2 hierarchy that has the memory, pids and cpu controllers."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup.backend import CPU_PERIOD_US, Limits, Stats, naming, read, read_keyed, write
from bedsit.sandbox.cgroup.lifecycle import PROCS, Lifecycle

CONTROLLERS: Final = frozenset({"memory", "pids", "cpu"})
# Where the daemon itself goes: a group with controllers for its children may not hold processes of its own.
LEAF: Final = "supervisor"
_LIMITS: Final = ("memory.max", "memory.swap.max", "pids.max", "cpu.max")


class V2Backend:
    """Groups below one root. Fulfils CgroupBackend."""

    limits_version: Literal["v2"] = "v2"

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._life = lifecycle
        self.procs = lifecycle.procs
        self.freeze = lifecycle.freeze
        self.kill = lifecycle.kill
        self.populated = lifecycle.populated
        self.populated_fd = lifecycle.populated_fd
        self.remove = lifecycle.remove
        self.list = lifecycle.list
        self.remove_root = lifecycle.remove_root

    def places(self) -> dict[str, str]:
        """As CgroupBackend says."""
        return {"unified": str(self._life.root)}

    def create(self, slot: str) -> None:
        """As CgroupBackend says. An OOM kill takes the whole slot, never half of one."""
        self._life.create(slot)
        try:
            write(self._life.root / slot / "memory.oom.group", 1)
        except BedsitError:
            with contextlib.suppress(BedsitError):
                self.remove(slot)
            raise

    def set_limits(self, slot: str, limits: Limits) -> None:
        """As CgroupBackend says."""
        folder = self._life.root / slot
        wanted = self._wanted(folder, limits)
        before = {name: read(folder / name) for name in wanted}
        try:
            for name, value in wanted.items():
                write(folder / name, value)
        except BedsitError:
            for name, value in before.items():
                with contextlib.suppress(BedsitError):
                    write(folder / name, value)
            raise

    def open_join_fds(self, slot: str) -> "list[int]":
        """As CgroupBackend says."""
        return [self._life.open_join_fd(slot)]

    def stats(self, slot: str) -> Stats:
        """As CgroupBackend says. The peak is that of memory.peak (kernel 5.19), or what is used now."""
        folder = self._life.root / slot
        cpu = self._life.cpu_stat(slot)
        used = int(read(folder / "memory.current"))
        peak = folder / "memory.peak"
        return Stats(
            memory_bytes=used,
            memory_peak_bytes=int(read(peak)) if peak.exists() else used,
            cpu_usage_s=cpu["usage_usec"] / 1e6,
            throttled_s=cpu.get("throttled_usec", 0) / 1e6,
            pids=int(read(folder / "pids.current")),
        )

    def oom_kills(self, slot: str) -> int:
        """As CgroupBackend says."""
        return read_keyed(self._life.root / slot / "memory.events")["oom_kill"]

    def pids_denied(self, slot: str) -> int:
        """As CgroupBackend says."""
        return read_keyed(self._life.root / slot / "pids.events")["max"]

    def verify(self, slot: str, limits: Limits, pids: Iterable[int]) -> str | None:
        """As CgroupBackend says."""
        folder = self._life.root / slot
        for name, value in self._wanted(folder, limits).items():
            actual = read(folder / name)
            if actual != value:
                return f"{name} is {actual}, not {value}"
        members = self._life.procs(slot)
        strays = [pid for pid in pids if pid not in members]
        return f"process {strays[0]} is not in {folder}" if strays else None

    @staticmethod
    def _wanted(folder: Path, limits: Limits) -> dict[str, str]:
        values = (str(limits.memory_pages_bytes), "0", str(limits.pids_max), f"{limits.quota_us} {CPU_PERIOD_US}")
        # A kernel without swap accounting has no memory.swap.max, and then no swap to bound either.
        return {name: value for name, value in zip(_LIMITS, values, strict=True) if (folder / name).exists()}


def prepare(own: Path, root: Path) -> None:
    """Make *root* below *own*, both handing the controllers down. Moves the processes of *own* into a leaf first.

    Raises ``cgroup.refused``, for one when *own* was not delegated to us.
    """
    if (own / "cgroup.events").exists():  # the hierarchy's own root has none, and may hold processes
        with naming(own / LEAF):
            (own / LEAF).mkdir(exist_ok=True)
        for pid in read(own / PROCS).split():
            write(own / LEAF / PROCS, pid)
    _hand_down(own)
    with naming(root):
        root.mkdir(exist_ok=True)
    _hand_down(root)


def has_controllers(own: Path) -> bool:
    """Whether limits can be set below *own*."""
    try:
        return set(read(own / "cgroup.controllers").split()) >= CONTROLLERS
    except OSError:
        return False


def _hand_down(folder: Path) -> None:
    write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(CONTROLLERS)))


def step_out(own: Path) -> Path:
    """The group that was given to us, for a daemon that sits in its leaf already."""
    return own.parent if own.name == LEAF else own
