"""A listener that systemd holds for us: it is there while we are not, and who comes then waits (sd_listen_fds(3))."""

import contextlib
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import BedsitError, error

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_MOST: Final = 16


def take_held_listener(environ: MutableMapping[str, str], name: str, kind: socket.SocketKind) -> socket.socket | None:
    """The listener that was passed as *name* (``FileDescriptorName=``); None where none was, or not to this process.

    Children get nothing of it: what says so is taken out of *environ*, the listener is closed on exec, and what was
    passed beside it is closed now. Raises ``config.invalid`` when it is no UNIX listener of that kind.
    """
    pid, count, names = (environ.pop(f"LISTEN_{word}", "") for word in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()):
        return None
    called = names.split(":")
    if not count.isdecimal() or int(count) > _MOST or int(count) != len(called) or called.count(name) > 1:
        raise _refuse(f"LISTEN_FDS={count!r} with LISTEN_FDNAMES={names!r}")
    found = None
    for fd, one in enumerate(called, _FIRST):
        if one == name:
            found = fd
        else:
            with contextlib.suppress(OSError):
                os.close(fd)
    return None if found is None else _adopt(found, kind)


def check_place(listener: socket.socket, path: Path) -> None:
    """Raises ``config.invalid`` when clients would look for the listener elsewhere."""
    if listener.getsockname() != str(path):
        raise _refuse(f"a socket at {listener.getsockname()!r}, and not at {path}")


def turn_away(listener: socket.socket) -> None:
    """Close the connections of who waits. Without it systemd starts, for them, at once again what cannot serve them."""
    with contextlib.suppress(OSError):
        listener.setblocking(False)
        while True:
            listener.accept()[0].close()


def _adopt(fd: int, kind: socket.SocketKind) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
    except OSError as e:
        raise _refuse(f"descriptor {fd}: {e.strerror}") from None
    if listener.family == socket.AF_UNIX and listener.type == kind:
        if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return listener
        found = "a socket that does not listen"
    else:
        found = f"a socket of {listener.family!r} and {listener.type!r}"
    listener.close()
    raise _refuse(found)


def _refuse(what: str) -> BedsitError:
    return error("config.invalid", f"systemd passed {what}", "see: systemctl cat bedsitd.socket bedsit-router.socket")
