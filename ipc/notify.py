"""Telling systemd how we are: sd_notify(3), one datagram per message. Without ``NOTIFY_SOCKET`` nothing happens."""

import os
import socket
from collections.abc import Mapping
from typing import Final

_MICRO: Final = 1_000_000


class Notifier:
    """A datagram socket towards the service manager."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if path else None
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        #: How often to say that we live: a third of what the manager allows. None: it does not ask.
        self.watchdog_interval_s = int(usec) / _MICRO / 3 if usec.isdigit() and ours else None

    def tell(self, *lines: str) -> None:
        """Send *lines* (``"READY=1"``, ``"STATUS=..."``); a manager that does not listen is no reason to fail."""
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, self._address)
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
