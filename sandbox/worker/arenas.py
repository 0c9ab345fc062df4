"""The arenas that this worker has mapped.

The router is believed; the clients behind the arenas are not: bytes in an arena may change at any time.
"""

import ctypes
import mmap
from typing import NamedTuple


class Mapped(NamedTuple):
    """An arena in this process: its pages, and the address of the first one."""

    pages: mmap.mmap
    address: int


class ArenaTable:
    """Arenas by number. A mapping lives until it is forgotten and nothing refers to it."""

    def __init__(self) -> None:
        self._arenas: dict[int, Mapped] = {}

    def give(self, number: int, fd: int, size: int) -> None:
        """Map *fd*, which stays the caller's. Raises OSError, ValueError."""
        pages = mmap.mmap(fd, size)
        # SAFETY: the mapping lives as long as this tuple, and the memfd is sealed against shrinking.
        self._arenas[number] = Mapped(pages, ctypes.addressof(ctypes.c_char.from_buffer(pages)))

    def forget(self, number: int) -> None:
        """That arena is of no further use. Not closed: tensors over it may live; the last of them unmaps it."""
        self._arenas.pop(number, None)

    def clear(self) -> None:
        """A new router has new arenas."""
        self._arenas.clear()

    def find(self, number: int) -> Mapped | None:
        """The arena of that number, or None."""
        return self._arenas.get(number)
