"""The life of a group, always through cgroup2: it can kill, freeze and say "empty" as one, which v1 never could.

Any cgroup2 mount serves, also one without controllers beside v1 hierarchies.
"""

import os
from pathlib import Path
from typing import Final

from bedsit.sandbox.cgroup.backend import list_folders, naming, read, read_keyed, remove_folder, write

PROCS: Final = "cgroup.procs"


class Lifecycle:
    """Groups below *root* in a cgroup2 hierarchy."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, slot: str) -> None:
        """Make a group."""
        with naming(self.root / slot):
            (self.root / slot).mkdir()

    def open_join_fd(self, slot: str) -> int:
        """The file to write "0" into."""
        with naming(self.root / slot / PROCS):
            return os.open(self.root / slot / PROCS, os.O_WRONLY | os.O_CLOEXEC)

    def procs(self, slot: str) -> list[int]:
        """Pids in the group; none when it is gone."""
        try:
            return [int(pid) for pid in read(self.root / slot / PROCS).split()]
        except FileNotFoundError:
            return []

    def cpu_stat(self, slot: str) -> dict[str, int]:
        """cpu.stat: usage_usec is there without any controller."""
        return dict(read_keyed(self.root / slot / "cpu.stat"))

    def freeze(self, slot: str, on: bool) -> None:  # noqa: FBT001  as cgroup.freeze has it
        """cgroup.freeze."""
        write(self.root / slot / "cgroup.freeze", int(on))

    def kill(self, slot: str) -> None:
        """cgroup.kill (kernel 5.14)."""
        write(self.root / slot / "cgroup.kill", 1)

    def populated(self, slot: str) -> bool:
        """cgroup.events; a group that is gone has nobody in it."""
        try:
            return bool(read_keyed(self.root / slot / "cgroup.events")["populated"])
        except FileNotFoundError:
            return False

    def populated_fd(self, slot: str) -> int:
        """cgroup.events, open."""
        with naming(self.root / slot / "cgroup.events"):
            return os.open(self.root / slot / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)

    def remove(self, slot: str) -> None:
        """Remove a group."""
        remove_folder(self.root / slot)

    def list(self) -> list[str]:
        """All groups."""
        return list_folders(self.root)

    def remove_root(self) -> None:
        """Remove the root."""
        remove_folder(self.root)
