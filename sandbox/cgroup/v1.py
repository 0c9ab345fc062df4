"""Limits through cgroup v1 hierarchies and cgroupspy's controllers; the life cycle through cgroup2 beside them."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from cgroupspy import controllers, interfaces

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup.backend import (
    CPU_PERIOD_US,
    Limits,
    Stats,
    list_folders,
    naming,
    read_keyed,
    remove_folder,
)
from bedsit.sandbox.cgroup.lifecycle import Lifecycle

CONTROLLERS: Final = ("memory", "pids", "cpu")


class Group:
    """One group in one hierarchy: all that a cgroupspy controller wants to know of its node."""

    def __init__(self, path: Path) -> None:
        self.full_path = os.fsencode(path)


class PidsController(controllers.Controller):  # type: ignore[misc]  # cgroupspy has no types
    """The pids controller, which cgroupspy lacks."""

    max = interfaces.BaseFileInterface("pids.max")
    current = interfaces.IntegerFile("pids.current", readonly=True)
    events = interfaces.DictFile("pids.events", readonly=True)


_CLASSES: Final[Mapping[str, Any]] = {
    "memory": controllers.MemoryController,
    "pids": PidsController,
    "cpu": controllers.CpuController,
}


class V1Backend:
    """Groups below one root per hierarchy. Fulfils CgroupBackend."""

    limits_version: Literal["v1"] = "v1"

    def __init__(self, roots: Mapping[str, Path], lifecycle: Lifecycle) -> None:
        self._roots = {name: roots[name] for name in CONTROLLERS}
        self._folders = tuple(dict.fromkeys(self._roots.values()))  # controllers may share a hierarchy
        self._life = lifecycle
        self.procs = lifecycle.procs
        self.freeze = lifecycle.freeze
        self.kill = lifecycle.kill
        self.populated = lifecycle.populated
        self.populated_fd = lifecycle.populated_fd

    def places(self) -> dict[str, str]:
        """As CgroupBackend says."""
        return {name: str(root) for name, root in self._roots.items()} | {"unified": str(self._life.root)}

    def create(self, slot: str) -> None:
        """As CgroupBackend says."""
        try:
            for root in self._folders:
                with naming(root / slot):
                    (root / slot).mkdir()
            self._life.create(slot)
        except BedsitError:
            with contextlib.suppress(BedsitError):
                self.remove(slot)
            raise

    def set_limits(self, slot: str, limits: Limits) -> None:
        """As CgroupBackend says."""
        wanted = self._wanted(slot, limits)
        before = [(*place, self._get(slot, *place)) for place in wanted]
        try:
            for (name, attribute), value in wanted.items():
                self._set(slot, name, attribute, value)
        except BedsitError:
            for name, attribute, value in reversed(before):
                with contextlib.suppress(BedsitError):
                    self._set(slot, name, attribute, value)
            raise

    def open_join_fds(self, slot: str) -> list[int]:
        """As CgroupBackend says. v1 takes one thread through `tasks`: see `jail.limits.join_cgroup`."""
        fds: list[int] = []
        try:
            for root in self._folders:
                with naming(root / slot / "tasks"):
                    fds.append(os.open(root / slot / "tasks", os.O_WRONLY | os.O_CLOEXEC))
            fds.append(self._life.open_join_fd(slot))
        except BedsitError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def stats(self, slot: str) -> Stats:
        """As CgroupBackend says."""
        memory = self._controller(slot, "memory")
        return Stats(
            memory_bytes=memory.usage_in_bytes,
            memory_peak_bytes=memory.max_usage_in_bytes,
            cpu_usage_s=self._life.cpu_stat(slot)["usage_usec"] / 1e6,
            throttled_s=read_keyed(self._roots["cpu"] / slot / "cpu.stat")["throttled_time"] / 1e9,
            pids=self._controller(slot, "pids").current,
        )

    def oom_kills(self, slot: str) -> int:
        """As CgroupBackend says. Not failcnt, which stays 0 when memory and swap have the same limit."""
        return int(self._controller(slot, "memory").oom_control["oom_kill"])

    def pids_denied(self, slot: str) -> int:
        """As CgroupBackend says."""
        return int(self._controller(slot, "pids").events["max"])

    def verify(self, slot: str, limits: Limits, pids: Iterable[int]) -> str | None:
        """As CgroupBackend says."""
        for (name, attribute), value in self._wanted(slot, limits).items():
            actual = self._get(slot, name, attribute)
            if str(actual) != str(value):
                return f"{name} {attribute} is {actual}, not {value}"
        for pid in pids:
            for name, root in self._roots.items():
                if pid not in self._controller(slot, name).procs:
                    return f"process {pid} is not in {root / slot}"
            if pid not in self._life.procs(slot):
                return f"process {pid} is not in {self._life.root / slot}"
        return None

    def remove(self, slot: str) -> None:
        """As CgroupBackend says."""
        for root in self._folders:
            remove_folder(root / slot)
        self._life.remove(slot)

    def list(self) -> list[str]:
        """As CgroupBackend says."""
        found = set(self._life.list())
        for root in self._folders:
            found.update(list_folders(root))
        return sorted(found)

    def remove_root(self) -> None:
        """As CgroupBackend says."""
        for root in self._folders:
            remove_folder(root)
        self._life.remove_root()

    def _wanted(self, slot: str, limits: Limits) -> dict[tuple[str, str], int]:
        """What to write, in order: memory may never be above memory plus swap, not even between two writes."""
        memory = limits.memory_pages_bytes
        wanted = {("memory", "limit_in_bytes"): memory}
        if (self._roots["memory"] / slot / "memory.memsw.limit_in_bytes").exists():
            both = {("memory", "memsw_limit_in_bytes"): memory}
            growing = memory > self._get(slot, "memory", "memsw_limit_in_bytes")
            wanted = both | wanted if growing else wanted | both
        wanted["pids", "max"] = limits.pids_max
        wanted["cpu", "cfs_period_us"] = CPU_PERIOD_US
        wanted["cpu", "cfs_quota_us"] = limits.quota_us
        return wanted

    def _set(self, slot: str, name: str, attribute: str, value: object) -> None:
        controller = self._controller(slot, name)
        file = os.fsdecode(controller.get_interface(attribute).filename)
        with naming(self._roots[name] / slot / file, str(value)):
            setattr(controller, attribute, value)

    def _get(self, slot: str, name: str, attribute: str) -> Any:
        return getattr(self._controller(slot, name), attribute)

    def _controller(self, slot: str, name: str) -> Any:
        return _CLASSES[name](Group(self._roots[name] / slot))
