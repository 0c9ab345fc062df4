"""Limits and life cycle through one cgroup2 hierarchy that has the memory, pids and cpu controllers."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup.backend import SLOTS, Limits, Stats, check_limits, naming, read, read_keyed, write
from bedsit.sandbox.cgroup.lifecycle import PROCS, Lifecycle
from bedsit.sandbox.cgroup.v2limits import V2Limits
from bedsit.sandbox.nodes import Node

CONTROLLERS: Final = frozenset({"memory", "pids", "cpu"})
# Where the daemon itself goes: a group with controllers for its children may not hold processes of its own.
LEAF: Final = "supervisor"
#: A box without them holds no limit of that kind, and refuses a tenant that is given one.
OPTIONAL: Final = frozenset({"cpuset", "io"})


class V2Backend:
    """Groups below one root. Fulfils CgroupBackend."""

    limits_version: Literal["v2"] = "v2"

    def __init__(self, places: Mapping[str, str], lifecycle: Lifecycle) -> None:
        self._places = dict(places)
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
        self.remove = lifecycle.remove
        self.list = lifecycle.list
        self.remove_root = lifecycle.remove_root

    def places(self) -> dict[str, str]:
        """As CgroupBackend says."""
        return dict(self._places)

    def use(self, group: Path) -> None:
        """As CgroupBackend says."""
        root = group / SLOTS
        _hand_down(group)
        with naming(root):
            root.mkdir(exist_ok=True)
        _hand_down(root)
        self._life.use(root)

    def know(self, group: Path) -> None:
        """As CgroupBackend says."""
        self._life.know(group / SLOTS)

    def leave(self, group: Path) -> None:
        """As CgroupBackend says."""
        self._life.leave(group / SLOTS)

    def create(self, slot: str, nodes: Sequence[Node] = ()) -> None:
        """As CgroupBackend says. An OOM kill takes the whole slot, never half of one."""
        self._life.create(slot, nodes)
        try:
            write(self._life.folder(slot) / "memory.oom.group", 1)
        except BedsitError:
            with contextlib.suppress(BedsitError):
                self.remove(slot)
            raise

    def set_limits(self, slot: str, limits: Limits) -> None:
        """As CgroupBackend says."""
        self.check(limits)
        V2Limits(self._life.folder(slot)).set(limits)

    def check(self, limits: Limits) -> None:
        """As CgroupBackend says."""
        top = find_top(Path(self._places["unified"]).parent)
        place = next((root for root in self._life.roots if root.is_dir()), top)
        check_limits(limits, read(place / "cgroup.controllers").split())

    def open_join_fds(self, slot: str) -> "list[int]":
        """As CgroupBackend says: none."""
        del slot
        return []

    def stats(self, slot: str) -> Stats:
        """As CgroupBackend says. The peak is that of memory.peak (kernel 5.19), or what is used now."""
        folder = self._life.folder(slot)
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
        return read_keyed(self._life.folder(slot) / "memory.events")["oom_kill"]

    def pids_denied(self, slot: str) -> int:
        """As CgroupBackend says."""
        return read_keyed(self._life.folder(slot) / "pids.events")["max"]

    def verify(self, slot: str, limits: Limits, pids: Iterable[int]) -> str | None:
        """As CgroupBackend says."""
        folder = self._life.folder(slot)
        if difference := V2Limits(folder).find_difference(limits):
            return difference
        members = self._life.procs(slot)
        strays = [pid for pid in pids if pid not in members]
        return f"process {strays[0]} is not in {folder}" if strays else None


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
    offered = OPTIONAL.intersection(read(folder / "cgroup.controllers").split())
    write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(CONTROLLERS | offered)))


def find_top(group: Path) -> Path:
    """The root of the cgroup2 hierarchy that *group* is in."""
    while (group.parent / "cgroup.controllers").exists():
        group = group.parent
    return group


def step_out(own: Path) -> Path:
    """The group that was given to us, for a daemon that sits in its leaf already."""
    return own.parent if own.name == LEAF else own
