"""When the router's own memory or descriptors run low: which lane is the likely reason.

libzmq bounds neither the parts of a message that never ends nor the connections to a lane, and ends the whole process
when it can allocate no more (yqueue.hpp) or accept no more (ipc_listener.cpp). So the router looks at itself, and cuts
the one lane that looks guilty while there is still room.

What a lane looks like from here: connections beyond those that it should have, and bytes that wait in the kernel while
no packet comes of them. A guess; what is lost by a wrong one is that lane's requests, not everybody's.
"""

import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import stat
import struct
import termios
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

# Above what honest queues hold on all but the fullest boxes, far below RLIMIT_DATA, whose rest a flood needs seconds
# to fill. Where honest queues do hold more, nobody looks guilty, and looking gets rarer.
MEMORY_BYTES: Final = 512 << 20
# Looks that are left out at most, one after the other, while memory is short and nobody looks guilty.
_REST: Final = 7
# Connections come at 40 a millisecond, so the rate is a sign long before half of all numbers are gone.
_RUSH: Final = 1000
_INT: Final = struct.Struct("i")


class Lane(NamedTuple):
    """A lane as its owner sees it: connections that it should have, and packets that ever came of it."""

    connections: int
    received: int
    cut: Callable[[], None]


class Pressure:
    """Looks at this process, and remembers what came over each lane until it looks again."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._open = 0
        self._innocent = 0  # so many were open when nobody looked guilty: looking is not cheap
        self._rests = self._rest = 0  # looks to leave out now, and after the next one that finds nobody
        self._received: dict[str, int] = {}

    def look(self, lanes: Callable[[], Mapping[str, Lane]]) -> str | None:
        """Cut one lane when there is pressure and one looks guilty; gives its path. *lanes* are by path."""
        if self._rests:
            self._rests -= 1
            return None
        if not self._is_pressed():
            self._received.clear()
            self._rest = 0
            return None
        known = lanes()
        waiting = _read_connections()
        guilty = max(known, key=lambda path: self._suspect(path, known[path], waiting), default=None)
        found = guilty if guilty and self._suspect(guilty, known[guilty], waiting) > (0, 0) else None
        self._received = {path: lane.received for path, lane in known.items()}
        if found:
            known[found].cut()
            self._rest = 0
        else:
            self._innocent = self._open + _RUSH
            self._rests, self._rest = self._rest, min(2 * self._rest + 1, _REST)
        return found

    def _is_pressed(self) -> bool:
        if self._holds_too_much():
            _give_back()  # what a lane that was cut had is free, but still ours until somebody says so
            if self._holds_too_much():
                return True
        before, self._open = self._open, os.dup(0)  # the lowest number that is free: about how many are open
        os.close(self._open)
        return self._open > self._innocent and (self._open > self._descriptors or self._open - before > _RUSH)

    def _holds_too_much(self) -> bool:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") > self._memory_bytes

    def _suspect(self, path: str, lane: Lane, waiting: Mapping[str, list[int]]) -> tuple[int, int]:
        unread = waiting.get(path, [])
        surplus = max(0, len(unread) - lane.connections)
        silent = self._received.get(path) == lane.received
        return surplus, sum(unread) if silent or surplus else 0


def _give_back() -> None:
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)


def _read_connections() -> dict[str, list[int]]:
    """Unread bytes of each accepted connection of this process, by the path it was accepted at."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # libzmq's thread may close it meanwhile
            if stat.S_ISSOCK(entry.stat().st_mode) and (seen := _read_connection(os.dup(int(entry.name)))):
                found.setdefault(seen[0], []).append(seen[1])
    return found


def _read_connection(fd: int) -> tuple[str, int] | None:
    # With all three said Python asks nothing of the descriptor, and so cannot fail before it owns it.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd) as sock:
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        if kind != socket.SOCK_STREAM or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return None
        path = sock.getsockname()
        if not isinstance(path, str) or not path:
            return None
        return path, _INT.unpack(fcntl.ioctl(sock, termios.FIONREAD, bytes(_INT.size)))[0]
