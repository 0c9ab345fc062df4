"""What the NVIDIA driver writes into the kernel's log: Xids, among others."""

import os
from typing import Final

_MOST: Final = 200


class KernelLog:
    """The lines of /dev/kmsg from now on, or from the machine's start. Raises OSError where we may not read it."""

    def __init__(self, *, whole: bool = False) -> None:
        self._file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._file, 0, os.SEEK_SET if whole else os.SEEK_END)

    def read(self) -> list[str]:
        """The driver's lines since the last look, at most 200."""
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._file, 8192)
            except BlockingIOError:
                return lines[-_MOST:]
            except BrokenPipeError:
                continue  # records were overwritten before we came to read them
            text = record.decode(errors="replace").partition(";")[2].strip()
            if any(word in text for word in ("NVRM", "nvidia", "Xid")):
                lines.append(text.splitlines()[0][:300])

    def close(self) -> None:
        """Let go of the log."""
        os.close(self._file)


def find_xids(lines: list[str]) -> list[int]:
    """The numbers of the Xids among them: ``NVRM: Xid (PCI:0000:00:05): 31, pid=...``."""
    found = []
    for line in lines:
        if "Xid" in line and "): " in line:
            number = line.partition("): ")[2].split(",")[0].strip()
            if number.isdigit():
                found.append(int(number))
    return found
