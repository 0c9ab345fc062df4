"""Who listens on a socket: how a running daemon or router is found. By the kernel's word, never by a pid file."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bedsit.ipc.admin import SOCKET_NAME

# Linux 6.5; the number is that of asm-generic/socket.h, which all our architectures use.
_SO_PEERPIDFD: Final = 77
_BOOTED: Final = Path("/run/systemd/system")  # sd_booted(3)
_UCRED: Final = struct.Struct("3i")


class Listener(NamedTuple):
    """A process that listens: *pidfd* stays with this one process, whoever gets its number later."""

    pid: int
    pidfd: int
    uid: int


@contextlib.contextmanager
def find_listener(path: Path, kind: socket.SocketKind) -> Iterator[Listener | None]:
    """The process that listens at *path*, or None; its pidfd is closed on leaving.

    ``SO_PEERCRED`` on the connecting side names the process that called listen(2) last (unix(7)): where systemd holds
    the socket, systemd or one that has ended, until ours runs; then there is none. Where the kernel has no
    ``SO_PEERPIDFD`` the pidfd is opened by number and the socket asked again: it must still name the same process.
    """
    found = take_listener(path, kind)
    try:
        yield found
    finally:
        if found is not None:
            os.close(found.pidfd)


def take_listener(path: Path, kind: socket.SocketKind) -> Listener | None:
    """As ``find_listener``; the caller closes the pidfd."""
    asked = _ask(path, kind)
    if asked is None:
        return None
    pid, uid, pidfd = asked
    if pidfd is None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        again = _ask(path, kind)
        if again is None or again[0] != pid:
            os.close(pidfd)
            return None
    return Listener(pid, pidfd, uid)


def find_daemon(run_dir: Path) -> contextlib.AbstractContextManager[Listener | None]:
    """The daemon of a run directory."""
    return find_listener(run_dir / SOCKET_NAME, socket.SOCK_STREAM)


def find_router(run_dir: Path) -> contextlib.AbstractContextManager[Listener | None]:
    """The router of a run directory."""
    return find_listener(run_dir / "router" / "door.sock", socket.SOCK_SEQPACKET)


def _ask(path: Path, kind: socket.SocketKind) -> tuple[int, int, int | None] | None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.settimeout(5.0)
        try:
            sock.connect(os.fspath(path))
            pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except (OSError, ValueError):
            return None
        try:
            pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError:
            pidfd = None
        return (pid, uid, pidfd) if pid and not (pid == 1 and _BOOTED.is_dir()) else None
