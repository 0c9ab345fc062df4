"""What each zygote generation leaves in the run folder.

A number is never used twice there, until ``bedsit down`` removes them all.

N.sock    its listener, while it runs
N.log     what it said (without systemd; the journal has it otherwise)
N.pid     its process and when that started (without systemd): one that does not listen is known by nothing else
N.group   the cgroup that its unit was given (with systemd): written empty before the start, filled in after it

Traces outlive a generation; that of the newest one always does, and the newest logs do for a reader.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

from bedsit.supervisor.atomic import write_atomically

_TRACES: Final = (".sock", ".log", ".pid", ".group")
_LOGS_KEPT: Final = 3


class Generations:
    """The folder of all generations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def socket(self, generation: int) -> Path:
        """Where it listens."""
        return self._folder / f"{generation}.sock"

    def log(self, generation: int) -> Path:
        """Where it writes to when the daemon started it itself."""
        return self._folder / f"{generation}.log"

    def list(self) -> list[int]:
        """Every generation that left a trace."""
        traces = (path.stem for path in self._folder.iterdir() if path.suffix in _TRACES)
        return sorted({int(stem) for stem in traces if stem.isdigit()})

    def next_number(self) -> int:
        """A number that no generation has had."""
        return max(self.list(), default=0) + 1

    def groups(self) -> dict[int, Path]:
        """The groups of generations that are units and not forgotten yet."""
        texts = {generation: self._read_group(generation) for generation in self.list()}
        return {generation: Path(text) for generation, text in texts.items() if text}

    def save_group(self, generation: int, group: Path | None) -> None:
        """Write down a generation's group, or first that it is about to have one. Raises ``disk.full``."""
        write_atomically(self._group(generation), str(group or "").encode())

    def save_process(self, generation: int, pid: int, started_at: int) -> None:
        """Write down which process a generation is. Raises ``disk.full``."""
        write_atomically(self._trace(generation, ".pid"), f"{pid} {started_at}".encode())

    def load_process(self, generation: int) -> tuple[int, int] | None:
        """Its process and when that started, as it was written down."""
        try:
            pid, started_at = map(int, self._trace(generation, ".pid").read_text(encoding="utf-8").split())
        except (OSError, ValueError):
            return None
        return pid, started_at

    def forget_ended(self, living: Collection[int]) -> None:
        """Remove the traces of generations that are not among the *living* and have no group, but for the newest.

        A socket is left: one that appears late is how somebody is found whom nobody knows.
        """
        known = self.list()
        logs = [generation for generation in known if self.log(generation).exists()]
        for generation in set(known[:-1]) - {*living, *self.groups()}:
            kept = {".sock", ".log"} if generation in logs[-_LOGS_KEPT:] else {".sock"}
            for suffix in set(_TRACES) - kept:
                self._trace(generation, suffix).unlink(missing_ok=True)

    def forget_socket(self, generation: int) -> None:
        """It listens no more."""
        self.socket(generation).unlink(missing_ok=True)

    def forget_group(self, generation: int) -> None:
        """Its group is gone. The newest number stays known."""
        if generation == max(self.list(), default=0):
            self.save_group(generation, None)
        else:
            self._group(generation).unlink(missing_ok=True)

    def _group(self, generation: int) -> Path:
        return self._trace(generation, ".group")

    def _trace(self, generation: int, suffix: str) -> Path:
        return self._folder / f"{generation}{suffix}"

    def _read_group(self, generation: int) -> str:
        try:
            return self._group(generation).read_text(encoding="utf-8")
        except OSError:
            return ""
