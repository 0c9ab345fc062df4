"""The life of a group, always through cgroup2: it can kill, freeze and say "empty" as one, which v1 never could.

Any cgroup2 mount serves, also one without controllers beside v1 hierarchies.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.cgroup.backend import list_folders, naming, read, read_keyed, remove_folder, write
from bedsit.sandbox.cgroup.devices import DeviceProgram, NoProgram
from bedsit.sandbox.nodes import Node

PROCS: Final = "cgroup.procs"
#: Linux 5.7. Not trusted.*, for which the daemon's unit lacks CAP_SYS_ADMIN; no slot has its group mounted.
_MARK: Final = "user.bedsit"


class Lifecycle:
    """Groups below one root or more in a cgroup2 hierarchy. A slot's root is the one that has its group.

    One root is all there is without systemd. Under systemd each zygote generation has a root of its own: new slots go
    below the newest, and those of older generations stay where they were born.
    """

    def __init__(self, *roots: Path, devices: DeviceProgram | NoProgram) -> None:
        self._roots = list(roots)
        self._devices = devices
        self._refusals: dict[str, str] = {}
        #: Of slots that were born for a device: theirs lets its nodes through as well.
        self._wider: dict[str, DeviceProgram | NoProgram] = {}

    @property
    def root(self) -> Path:
        """Where new slots go. Raises ``cgroup.refused`` when there is no such place yet."""
        if not self._roots:
            raise error("cgroup.refused", "no generation has a group for slots yet")
        return self._roots[0]

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every root, that of new slots first."""
        return tuple(self._roots)

    def use(self, root: Path) -> None:
        """Make new slots below *root* from now on."""
        self.leave(root)
        self._roots.insert(0, root)

    def know(self, root: Path) -> None:
        """Find slots below *root* too."""
        if root not in self._roots:
            self._roots.append(root)

    def leave(self, root: Path) -> None:
        """Look below *root* no more."""
        with contextlib.suppress(ValueError):
            self._roots.remove(root)

    def find(self, slot: str) -> Path | None:
        """The slot's group, if it has one."""
        return next((root / slot for root in self._roots if (root / slot).is_dir()), None)

    def folder(self, slot: str) -> Path:
        """The slot's group, or where it would be. Raises ``cgroup.refused`` when it could be nowhere."""
        return self.find(slot) or self.root / slot

    def create(self, slot: str, nodes: Sequence[Node] = ()) -> None:
        """Make a group, with its device program before anything joins it."""
        folder = self.root / slot
        with naming(folder):
            folder.mkdir()
        self.renew(slot, nodes)

    def renew(self, slot: str, nodes: Sequence[Node] = ()) -> None:
        """Put this daemon's device program on a group. A refusal is what `check_devices` says then."""
        try:
            if nodes:
                self._wider[slot] = self._devices.allow_also(nodes)
            self._program(slot).attach(self.folder(slot))
        except BedsitError as e:
            self._refusals[slot] = e.message
        else:
            self._refusals.pop(slot, None)

    def check_devices(self, slot: str) -> str | None:
        """None when the group has our device program; else what is wrong."""
        why = self._program(slot).check(self.folder(slot))
        return why and self._refusals.get(slot, why)

    def _program(self, slot: str) -> DeviceProgram | NoProgram:
        return self._wider.get(slot, self._devices)

    def open_group_fd(self, slot: str) -> int:
        """The folder, as a place to be born into."""
        folder = self.folder(slot)
        with naming(folder):
            return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def mark(self, slot: str, text: str) -> None:
        """Write a word on a group; it goes with the group."""
        folder = self.folder(slot)
        with naming(folder, text):
            os.setxattr(folder, _MARK, text.encode())

    def read_mark(self, slot: str) -> str:
        """The word on a group; empty where there is none."""
        try:
            return os.getxattr(self.folder(slot), _MARK).decode()
        except (OSError, BedsitError, UnicodeDecodeError):
            return ""

    def procs(self, slot: str) -> list[int]:
        """Pids in the group; none when it is gone."""
        folder = self.find(slot)
        try:
            return [int(pid) for pid in read(folder / PROCS).split()] if folder else []
        except FileNotFoundError:
            return []

    def cpu_stat(self, slot: str) -> dict[str, int]:
        """cpu.stat: usage_usec is there without any controller."""
        return dict(read_keyed(self.folder(slot) / "cpu.stat"))

    def freeze(self, slot: str, on: bool) -> None:  # noqa: FBT001  as cgroup.freeze has it
        """cgroup.freeze."""
        write(self.folder(slot) / "cgroup.freeze", int(on))

    def kill(self, slot: str) -> None:
        """cgroup.kill (kernel 5.14)."""
        write(self.folder(slot) / "cgroup.kill", 1)

    def populated(self, slot: str) -> bool:
        """cgroup.events; a group that is gone has nobody in it."""
        folder = self.find(slot)
        try:
            return folder is not None and bool(read_keyed(folder / "cgroup.events")["populated"])
        except FileNotFoundError:
            return False

    def populated_fd(self, slot: str) -> int:
        """cgroup.events, open."""
        path = self.folder(slot) / "cgroup.events"
        with naming(path):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def remove(self, slot: str) -> None:
        """Remove a group."""
        if folder := self.find(slot):
            remove_folder(folder)
        self._refusals.pop(slot, None)
        self._wider.pop(slot, None)  # which closes it

    def list(self) -> list[str]:
        """All groups, below every root."""
        return sorted(slot for root in self._roots for slot in list_folders(root))

    def remove_root(self) -> None:
        """Remove the roots."""
        for root in self._roots:
            remove_folder(root)
        self._roots.clear()
        self._devices.close()
