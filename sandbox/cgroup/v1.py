"""Limits through cgroup v1 hierarchies and cgroupspy's controllers; the life cycle through cgroup2 beside them."""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup.backend import (
    SLOTS,
    Limits,
    Stats,
    check_limits,
    list_folders,
    naming,
    read,
    read_keyed,
    remove_folder,
    write,
)
from bedsit.sandbox.cgroup.lifecycle import Lifecycle
from bedsit.sandbox.cgroup.v1controllers import open_controller
from bedsit.sandbox.cgroup.v1limits import V1Limits
from bedsit.sandbox.nodes import Node

CONTROLLERS: Final = ("memory", "pids", "cpu")
#: A box without them holds no limit of that kind, and refuses a tenant that is given one.
OPTIONAL: Final = ("cpuset", "blkio")
_CPUSET: Final = ("cpuset.mems", "cpuset.cpus")  # a group takes nobody in while one of them is empty


class V1Backend:
    """Groups below one root per hierarchy. Fulfils CgroupBackend."""

    limits_version: Literal["v1"] = "v1"

    def __init__(self, places: Mapping[str, str], lifecycle: Lifecycle) -> None:
        self._places = dict(places)
        self._roots = {name: Path(places[name]) for name in (*CONTROLLERS, *OPTIONAL) if name in places}
        self._folders = tuple(dict.fromkeys(self._roots.values()))  # controllers may share a hierarchy
        self._life = lifecycle
        self.procs = lifecycle.procs
        self.group = lifecycle.folder
        self.mark = lifecycle.mark
        self.read_mark = lifecycle.read_mark
        self.freeze = lifecycle.freeze
        self.kill = lifecycle.kill
        self.populated = lifecycle.populated
        self.populated_fd = lifecycle.populated_fd
        self.open_group_fd = lifecycle.open_group_fd
        self.renew = lifecycle.renew
        self.check_devices = lifecycle.check_devices

    def places(self) -> dict[str, str]:
        """As CgroupBackend says."""
        return dict(self._places)

    def use(self, group: Path) -> None:
        """As CgroupBackend says. Limits stay with the daemon's own v1 groups: only the life cycle moves."""
        root = group / SLOTS
        with naming(root):
            root.mkdir(exist_ok=True)
        self._life.use(root)

    def know(self, group: Path) -> None:
        """As CgroupBackend says."""
        self._life.know(group / SLOTS)

    def leave(self, group: Path) -> None:
        """As CgroupBackend says."""
        self._life.leave(group / SLOTS)

    def create(self, slot: str, nodes: Sequence[Node] = ()) -> None:
        """As CgroupBackend says."""
        with contextlib.ExitStack() as undo:  # of what this call made: a group that was there is somebody's
            for root in self._folders:
                with naming(root / slot):
                    (root / slot).mkdir()
                undo.callback(remove_folder, root / slot)
            if "cpuset" in self._roots:
                inherit_cores(self._roots["cpuset"] / slot)
            self._life.create(slot, nodes)
            undo.pop_all()

    def set_limits(self, slot: str, limits: Limits) -> None:
        """As CgroupBackend says."""
        self.check(limits)
        self._limits(slot).set(limits)

    def check(self, limits: Limits) -> None:
        """As CgroupBackend says."""
        check_limits(limits, {"io" if name == "blkio" else name for name in self._roots})

    def open_join_fds(self, slot: str) -> list[int]:
        """As CgroupBackend says. v1 takes one thread through `tasks`: see `jail.limits.join_cgroup`."""
        fds: list[int] = []
        try:
            for root in self._folders:
                with naming(root / slot / "tasks"):
                    fds.append(os.open(root / slot / "tasks", os.O_WRONLY | os.O_CLOEXEC))
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
        if difference := self._limits(slot).find_difference(limits):
            return difference
        for pid in pids:
            for name, root in self._roots.items():
                if pid not in self._controller(slot, name).procs:
                    return f"process {pid} is not in {root / slot}"
            if pid not in self._life.procs(slot):
                return f"process {pid} is not in {self._life.folder(slot)}"
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

    def _limits(self, slot: str) -> V1Limits:
        return V1Limits({name: root / slot for name, root in self._roots.items()})

    def _controller(self, slot: str, name: str) -> Any:
        return open_controller(name, self._roots[name] / slot)


def inherit_cores(group: Path) -> None:
    """Give a new cpuset group what the group above has. Raises ``cgroup.refused``."""
    for name in _CPUSET:
        if not read(group / name):
            write(group / name, read(group.parent / name))
