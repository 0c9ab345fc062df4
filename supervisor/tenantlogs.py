"""What tenants print: two alternating files per slot, written by the slot's init, kept for the newest few slots."""

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bedsit.supervisor.atomic import disk_error

#: Slots of a tenant whose output is kept.
KEPT: Final = 8
_LINE: Final = re.compile(r"^(\S{20,32}Z) (out|err) ?(.*)$")
_MAX_LINE: Final = 5 << 10


@dataclass(frozen=True)
class LogLine:
    """One line of a tenant's output. *text* was made printable by the slot's init."""

    at: str
    stream: str
    slot: str
    text: str

    def to_wire(self) -> dict[str, Any]:
        """As the admin API shows it."""
        return asdict(self)


def open_logs(folder: Path, slot: str) -> list[int]:
    """The two files of a new slot, for its init to append to; the caller closes them. Forgets the oldest slots' files.

    Raises ``disk.full`` or ``folder.unusable``.
    """
    with ExitStack() as undo:
        try:
            folder.mkdir(0o700, exist_ok=True)
            for old in _slots(folder)[: -(KEPT - 1)]:
                remove_log(folder, old)
            fds = []
            for number in (0, 1):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                fds.append(os.open(folder / f"{slot}.{number}.log", flags, 0o640))
                undo.callback(os.close, fds[-1])
        except OSError as e:
            raise disk_error(folder, e) from e
        undo.pop_all()
        return fds


def remove_log(folder: Path, slot: str) -> None:
    """Forget what one slot printed."""
    for number in (0, 1):
        (folder / f"{slot}.{number}.log").unlink(missing_ok=True)


def remove_logs(folder: Path) -> None:
    """Forget what a tenant printed."""
    shutil.rmtree(folder, ignore_errors=True)


def keep_logs(folder: Path, tenants: set[str]) -> None:
    """Forget what all others than *tenants* printed, below the *folder* of all."""
    for left in folder.iterdir():
        if left.name not in tenants:
            remove_logs(left)


def last_lines(folder: Path, count: int) -> list[LogLine]:
    """The newest *count* lines of all slots of a tenant, oldest first. Reads at most what they can take."""
    lines: list[LogLine] = []
    for path in folder.glob("*.log"):
        lines += list(read_lines(path.stem.rpartition(".")[0], _tail(path, count * _MAX_LINE)))[-count:]
    lines.sort(key=lambda line: line.at)
    return lines[-count:]


def read_lines(slot: str, data: bytes) -> Iterable[LogLine]:
    """The whole lines in *data*."""
    for raw in data.decode(errors="replace").split("\n"):
        found = _LINE.match(raw[:_MAX_LINE])
        if found:
            yield LogLine(found[1], found[2], slot, found[3])


class LogFollower:
    """Reads what is appended to a tenant's files, slots that come later included."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {path: path.stat().st_size for path in folder.glob("*.log")}

    def poll(self) -> list[LogLine]:
        """The lines that were written since the last call, oldest first."""
        lines: list[LogLine] = []
        for path in self._folder.glob("*.log"):
            try:
                with path.open("rb") as file:
                    done = self._read.get(path, 0)
                    if os.fstat(file.fileno()).st_size < done:  # init starts a file anew when it is full
                        done = 0
                    file.seek(done)
                    data = file.read(1 << 20)
            except FileNotFoundError:
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = done + len(whole)
            lines += read_lines(path.stem.rpartition(".")[0], whole)
        lines.sort(key=lambda line: line.at)
        return lines


def _slots(folder: Path) -> list[str]:
    """Slots with files here, oldest first."""
    newest: dict[str, float] = {}
    for path in folder.glob("*.log"):
        slot = path.stem.rpartition(".")[0]
        newest[slot] = max(newest.get(slot, 0.0), path.stat().st_mtime)
    return sorted(newest, key=newest.__getitem__)


def _tail(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - limit))
        return file.read(limit)
