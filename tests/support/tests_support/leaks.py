"""What a test may leave behind: nothing. A snapshot before it, another one after, and the difference is a failure."""

import contextlib
import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

#: In the environment of every process that a test starts, unless it clears it.
MARK: Final = "BEDSIT_TEST_RUN"
#: Words by which things are known that are somebody's.
Marks = Callable[[], Iterable[str]]
_kept: Final[list[Marks]] = []
_CGROUPS: Final = Path("/sys/fs/cgroup")


class Snapshot(NamedTuple):
    """What there is: each thing in words, with how often it is there."""

    process: Counter[str]
    descriptor: Counter[str]
    memfd: Counter[str]
    cgroup: Counter[str]
    mount: Counter[str]
    socket: Counter[str]


def take_snapshot() -> Snapshot:
    """What this test run has now. What other people's processes have on the machine does not count."""
    return Snapshot(
        Counter(_find_processes()),
        Counter(_find_descriptors()),
        Counter(_find_memfds()),
        Counter(_find_cgroups()),
        Counter(_find_mounts()),
        Counter(_find_sockets()),
    )


@contextlib.contextmanager
def keep(marks: Marks) -> Iterator[None]:
    """What *marks* names does not count meanwhile: folders and pids of something that outlives a test.

    It may start and end processes as it likes, and answers for them when it goes down.
    """
    _kept.append(marks)
    yield
    _kept.remove(marks)


def find_leaks(before: Snapshot, ignored: Iterable[str] = (), within_s: float = 5.0) -> list[str]:
    """What is there and was not *before*, after *within_s* at most for what is still on its way out.

    Things that mention one of *ignored*, or of what `keep` was told, do not count.
    """
    deadline = time.monotonic() + within_s
    words = (*ignored, *(word for marks in _kept for word in marks()))
    gc.collect()
    while (leaks := _compare(before, words)) and time.monotonic() < deadline:
        time.sleep(0.02)
        gc.collect()
    return leaks


def _compare(before: Snapshot, ignored: tuple[str, ...]) -> list[str]:
    after = take_snapshot()
    return [
        f"{kind} {thing}" + (f" x{count}" if count > 1 else "")
        for kind in Snapshot._fields
        for thing, count in (getattr(after, kind) - getattr(before, kind)).items()
        if not any(word in thing for word in ignored)
    ]


def _find_processes() -> list[str]:
    """Our descendants, and whoever carries our mark. A zombie that nobody reaped counts too."""
    parents: dict[int, int] = {}
    marked = set()
    mark = f"{MARK}={os.environ.get(MARK)}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            try:
                parents[pid] = int((entry / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
                if mark in (entry / "environ").read_bytes():
                    marked.add(pid)
            except OSError:
                continue
    me = os.getpid()
    marked -= {me, *_find_ancestors(me, parents)}
    return [
        _name_process(pid) for pid in parents if pid != me and (pid in marked or me in _find_ancestors(pid, parents))
    ]


def _find_ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    found: list[int] = []
    while (pid := parents.get(pid, 0)) and pid not in found:
        found.append(pid)
    return found


def _name_process(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return f"{pid}"
    return f"{pid} ({words or name})"


def _find_descriptors() -> list[str]:
    """Our own; pipes and sockets by kind only, because their numbers say nothing."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the one that listed the folder
        kind, colon, number = target.partition(":")
        found.append(kind if colon and number.startswith("[") and number[1:-1].isdigit() else target)
    return [target for target in found if target != f"/proc/{os.getpid()}/fd"]


def _find_memfds() -> list[str]:
    """Mappings of ours whose file has no name in any folder: arenas."""
    lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    return [line.split(None, 5)[5] for line in lines if "/memfd:" in line]


def _find_cgroups() -> list[str]:
    # os.walk and not glob: other people's groups may go away while we look.
    folders = (Path(top, name) for top, names, _ in os.walk(_CGROUPS) for name in names)
    return [str(folder) for folder in folders if "/bedsit-" in str(folder) and _is_ours(folder)]


def _is_ours(group: Path) -> bool:
    """In CI every group of a bedsit is ours; elsewhere those below a name that this run gave."""
    return "CI" in os.environ or os.environ.get(MARK, "-") in str(group)


def _find_mounts() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _find_sockets() -> list[str]:
    """Bound sockets by their path. Other programs' sockets have other folders than bedsit's."""
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
    paths = [fields[7] for fields in (line.split(None, 7) for line in lines) if len(fields) > 7]
    return [path for path in paths if "bedsit" in path and ("CI" in os.environ or str(os.getpid()) in path)]
