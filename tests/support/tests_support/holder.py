"""Holds a listener as systemd does, and hands it to programs."""

import os
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_HAND_OVER: Final = """
import os, sys
fd, name, *command = sys.argv[1:]
os.dup2(int(fd), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": name}
os.execvp(command[0], command)
"""


class Holder:
    """The listener called *name* at *path*; a program that is started behind ``starter``, with ``fds``, gets it."""

    def __init__(self, name: str, path: Path, kind: socket.SocketKind) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, kind)
        self._listener.bind(str(path))
        self._listener.listen()
        fd = self._listener.fileno()
        self.fds = [fd]
        self.starter = [sys.executable, "-I", "-c", _HAND_OVER, str(fd), name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.path.unlink()


def listener_pid(path: Path, kind: socket.SocketKind) -> int:
    """Who listens, as a client is told."""
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(os.fspath(path))
        return int.from_bytes(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
