"""What the daemon asks of cgroups, whichever version the box has."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, Protocol

from bedsit.ipc.errors import error

CPU_PERIOD_US: Final = 100_000
_MIN_QUOTA_US: Final = 1_000  # the kernel refuses less


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """A slot's hard limits. *cpus* is a share of time (1.5 = one and a half processors)."""

    memory_bytes: int
    pids_max: int
    cpus: float

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
    """Groups for slots, below one root in each hierarchy. Every call is a few short file operations; none waits."""

    @property
    def limits_version(self) -> Literal["v1", "v2"]:
        """Which version holds the limits; the life cycle is always v2's."""

    def places(self) -> dict[str, str]:
        """Where the roots are, for `detect` in a later daemon that may itself sit in another group."""

    def create(self, slot: str) -> None:
        """Make the slot's groups, or none. Raises ``cgroup.refused``."""

    def set_limits(self, slot: str, limits: Limits) -> None:
        """Set all limits, now and for what joins later. Raises ``cgroup.refused``; what was set before is then back."""

    def open_join_fds(self, slot: str) -> list[int]:
        """Files into which a process writes "0" to join; the caller closes them."""

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
