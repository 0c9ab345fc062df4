"""One process as the kernel describes it in /proc/<pid> (proc(5))."""

import contextlib
import dataclasses
import os
import re
import resource
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_RLIMITS: Final = {
    resource.RLIMIT_CORE: "Max core file size",
    resource.RLIMIT_NOFILE: "Max open files",
    resource.RLIMIT_NPROC: "Max processes",
    resource.RLIMIT_FSIZE: "Max file size",
    resource.RLIMIT_MEMLOCK: "Max locked memory",
    resource.RLIMIT_STACK: "Max stack size",
    resource.RLIMIT_MSGQUEUE: "Max msgqueue size",
    resource.RLIMIT_RTPRIO: "Max realtime priority",
    resource.RLIMIT_NICE: "Max nice priority",
    resource.RLIMIT_SIGPENDING: "Max pending signals",
}
_NAMESPACES: Final = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user")


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo. *root* is the folder of the file system that is mounted at *point*."""

    id: int
    root: str
    point: str
    options: frozenset[str]
    kind: str
    super_options: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Descriptor:
    """An open descriptor: its *kind* (stat.S_IFMT), the id of the mount it was opened on, and what it is called."""

    number: int
    kind: int
    mount: int
    target: str


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """A process at one moment. *pids* are its numbers, from the box's pid namespace inwards."""

    pid: int
    status: Mapping[str, str]
    namespaces: Mapping[str, str]
    mounts: tuple[Mount, ...]
    descriptors: tuple[Descriptor, ...]
    rlimits: Mapping[int, tuple[str, str]]

    @property
    def pids(self) -> list[int]:
        """From the outermost namespace to the process's own."""
        return [int(number) for number in self.status["NSpid"].split()]


def read_process(pid: int) -> Process:
    """Read all of it. Raises OSError when there is no such process, or it may not be read."""
    folder = Path(f"/proc/{pid}")
    return Process(
        pid=pid,
        status=read_status(pid),
        namespaces=read_namespaces(pid),
        mounts=tuple(
            map(_read_mount, (folder / "mountinfo").read_text(encoding="utf-8", errors="replace").splitlines())
        ),
        descriptors=tuple(_read_descriptors(folder)),
        rlimits=_read_rlimits((folder / "limits").read_text(encoding="utf-8")),
    )


def read_status(pid: int) -> dict[str, str]:
    """The fields of /proc/<pid>/status. Raises OSError."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def read_namespaces(pid: int) -> dict[str, str]:
    """The namespaces that the process is in, by kind. Raises OSError."""
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in _NAMESPACES}


def _read_rlimits(text: str) -> dict[int, tuple[str, str]]:
    # Not prlimit(2), which asks for CAP_SYS_RESOURCE: a daemon may well be without it.
    found = {}
    for which, name in _RLIMITS.items():
        soft, hard = re.findall(rf"^{name} +(\S+) +(\S+)", text, re.MULTILINE)[0]
        found[which] = (soft, hard)
    return found


def _read_mount(line: str) -> Mount:
    fields, _, rest = line.partition(" - ")
    number, _, _, root, point, options = fields.split(" ")[:6]
    kind, _, super_options = rest.split(" ", 2)
    return Mount(int(number), root, point, frozenset(options.split(",")), kind, frozenset(super_options.split(",")))


def _read_descriptors(folder: Path) -> list[Descriptor]:
    found = []
    for number in sorted(int(name) for name in os.listdir(folder / "fd")):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            fd = folder / "fd" / str(number)
            info = dict(
                line.split(":\t", 1)
                for line in (folder / "fdinfo" / str(number)).read_text().splitlines()
                if ":\t" in line
            )
            found.append(Descriptor(number, stat.S_IFMT(os.stat(fd).st_mode), int(info["mnt_id"]), os.readlink(fd)))
    return found
