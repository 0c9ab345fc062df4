"""What the daemon asks of cgroups, whichever version the box has."""

import contextlib
import dataclasses
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from bedsit.ipc.errors import error
from bedsit.sandbox.cgroup.cores import ALL, find_online, format_cores, parse_cores
from bedsit.sandbox.nodes import Node

CPU_PERIOD_US: Final = 100_000
SLOTS: Final = "slots"  # below the group of a generation that has one
_MIN_QUOTA_US: Final = 1_000  # the kernel refuses less


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a slot may use.

    *cpus* is a share of time (1.5 = one and a half processors). When processors are short, groups share them by
    *cpu_weight* (1 to 10000), and those with *cpu_idle* get what nobody else wants. *cores* are the only ones that it
    runs on ("0-3,6" or "all"). *io_bps* are bytes a second read, and as many written, on each disk; 0: no limit.
    *slice_us*, which is no group's but its threads', says how long it may keep others waiting for their turn; 0: usual.
    """

    memory_bytes: int
    pids_max: int
    cpus: float
    cpu_weight: int = 100
    cpu_idle: bool = False
    cores: str = ALL
    io_bps: int = 0
    slice_us: int = 0

    @property
    def quota_us(self) -> int:
        """Microseconds of processor time in each CPU_PERIOD_US."""
        return max(_MIN_QUOTA_US, round(self.cpus * CPU_PERIOD_US))

    @property
    def memory_pages_bytes(self) -> int:
        """The memory limit in whole pages, as the kernel keeps it."""
        page = os.sysconf("SC_PAGESIZE")
        return self.memory_bytes // page * page


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """What a slot uses now (bytes, processes) and has used so far (seconds)."""

    memory_bytes: int
    memory_peak_bytes: int
    cpu_usage_s: float
    throttled_s: float
    pids: int


class CgroupBackend(Protocol):
    """Groups for slots, below one root in each hierarchy. Every call is a few short file operations.

    None waits for others. Only a memory limit below what is used may take a while: the kernel reclaims pages meanwhile.
    """

    @property
    def limits_version(self) -> Literal["v1", "v2"]:
        """Which version holds the limits; the life cycle is always v2's."""

    def places(self) -> dict[str, str]:
        """Where the roots are, for `detect` in a later daemon that may itself sit in another group."""

    def use(self, group: Path) -> None:
        """Make new slots below *group*, a cgroup2 group that was given to a zygote. Raises ``cgroup.refused``."""

    def know(self, group: Path) -> None:
        """Find the slots below *group* too, that of an older zygote."""

    def leave(self, group: Path) -> None:
        """Look below *group* no more."""

    def create(self, slot: str, nodes: Sequence[Node] = ()) -> None:
        """Make the slot's groups with its device program, or none. Raises ``cgroup.refused``.

        *nodes* are the device's that it is born for: the program lets exactly these through, besides the five.
        """

    def renew(self, slot: str, nodes: Sequence[Node] = ()) -> None:
        """Put this daemon's device program on the slot's group, instead of an earlier daemon's."""

    def check_devices(self, slot: str) -> str | None:
        """None when the slot's group has this daemon's device program and no other; else what is wrong."""

    def set_limits(self, slot: str, limits: Limits) -> None:
        """Set all limits, now and for what joins later. Raises ``cgroup.refused``.

        What was set before is then back, as far as the kernel takes it.
        """

    def check(self, limits: Limits) -> None:
        """Raises ``cgroup.refused`` for a limit that no slot on this box could be given, naming what it lacks."""

    def open_group_fd(self, slot: str) -> int:
        """The cgroup2 group's folder, O_PATH: a process can be born into it (clone3(2)). The caller closes it."""

    def open_join_fds(self, slot: str) -> list[int]:
        """Files of v1 hierarchies into which a process writes "0" to join, none on v2; the caller closes them."""

    def group(self, slot: str) -> Path:
        """The slot's cgroup2 folder, or where it would be. Raises ``cgroup.refused`` when it could be nowhere."""

    def mark(self, slot: str, text: str) -> None:
        """Write a word on the slot's cgroup2 group, for whoever comes later. Raises ``cgroup.refused``."""

    def read_mark(self, slot: str) -> str:
        """That word; empty where there is none, or no such group."""

    def procs(self, slot: str) -> list[int]:
        """Pids in the group; none when there is no such group."""

    def stats(self, slot: str) -> Stats:
        """Counters of the slot."""

    def oom_kills(self, slot: str) -> int:
        """How many processes the kernel killed because the slot was at its memory limit. A SIGKILL does not count."""

    def pids_denied(self, slot: str) -> int:
        """How many forks failed because the slot was at its limit of processes."""

    def freeze(self, slot: str, on: bool) -> None:  # noqa: FBT001  as cgroup.freeze has it
        """Stop or continue every process of the slot."""

    def kill(self, slot: str) -> None:
        """SIGKILL to all that is in the slot, also when frozen. Returns at once; wait for `populated`."""

    def populated(self, slot: str) -> bool:
        """Whether any process is left in it."""

    def populated_fd(self, slot: str) -> int:
        """A descriptor that polls POLLPRI when `populated` may have changed; the caller closes it."""

    def verify(self, slot: str, limits: Limits, pids: Iterable[int]) -> str | None:
        """None when *pids* are in the slot's groups and its limits read back as *limits*; else what is wrong."""

    def remove(self, slot: str) -> None:
        """Remove the slot's groups; nothing happens when there are none. Raises ``cgroup.refused`` while populated."""

    def list(self) -> list[str]:
        """All slots that have a group."""

    def remove_root(self) -> None:
        """Remove the roots, when no slot is left."""


def check_limits(limits: Limits, controllers: Container[str]) -> None:
    """Raises ``cgroup.refused`` for a limit that a box with these *controllers* cannot hold, or that names no core."""
    if limits.io_bps and "io" not in controllers:
        raise error("cgroup.refused", "this box has no io controller (v1: blkio) to hold a limit of bandwidth")
    if limits.cores == ALL:
        return
    if "cpuset" not in controllers:
        raise error("cgroup.refused", f"this box has no cpuset controller to keep a slot on the cores {limits.cores}")
    try:
        missing = parse_cores(limits.cores) - find_online()
    except ValueError as e:
        raise error("cgroup.refused", str(e)) from None
    if missing:
        has = format_cores(find_online())
        raise error("cgroup.refused", f"cpuset: this box has the cores {has}, not {format_cores(missing)}")


def read(path: Path) -> str:
    """A control file's text. Raises OSError."""
    return path.read_text(encoding="ascii").strip()


def read_keyed(path: Path) -> Mapping[str, int]:
    """A control file of "key number" lines; an empty file is an empty map."""
    return {key: int(value) for key, value in (line.split() for line in read(path).splitlines())}


def write(path: Path, value: str | int) -> None:
    """Write a control file. Raises ``cgroup.refused`` with the file, the value and the kernel's answer."""
    with naming(path, value):
        path.write_text(str(value), encoding="ascii")


@contextlib.contextmanager
def naming(path: Path, value: str | int = "") -> Iterator[None]:
    """Turn an OSError into ``cgroup.refused`` that names *path* and *value*."""
    try:
        yield
    except OSError as e:
        what = f"the kernel refused {value!r} for {path}" if value != "" else f"the kernel refused {path}"
        raise error("cgroup.refused", f"{what}: {e.strerror}", file=str(path), value=value, errno=e.errno) from e


def remove_folder(path: Path) -> None:
    """Remove a group; nothing happens when there is none."""
    with naming(path), contextlib.suppress(FileNotFoundError):
        path.rmdir()


def list_folders(path: Path) -> list[str]:
    """The groups below *path*."""
    return sorted(child.name for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
