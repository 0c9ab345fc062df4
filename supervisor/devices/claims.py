"""Which devices are this daemon's to hand out: two that gave out the same one would each take it for free.

A claim is a lock on a file (flock(2)) that ends with its process, whatever ends it.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from bedsit.supervisor.devices.model import Trouble

_LOCKS: Final = Path("/run/lock")

FOREIGN: Final = Trouble(
    "another bedsitd of this machine hands it out", "stop that one, or leave the device out of its configuration"
)


class Claims:
    """Devices by name, each with its lock."""

    def __init__(self, folder: Path = _LOCKS) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    def take(self, device: str) -> bool:
        """Whether the device is ours now. Where no lock can be made it is: that is no reason to go without."""
        if device in self._held:
            return True
        name = "".join(letter if letter.isalnum() else "-" for letter in device)
        try:
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._folder / f"bedsit-device-{name}.lock", flags, 0o600)
        except OSError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._held[device] = fd
        return True

    def close(self) -> None:
        """Let go of all."""
        for fd in self._held.values():
            with suppress(OSError):
                os.close(fd)
        self._held.clear()
