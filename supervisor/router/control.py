"""The link to the daemon: snapshots come in, reports go out. The router serves on without it."""

import os
import socket
from pathlib import Path
from typing import Any, Final

import structlog

from bedsit import __version__
from bedsit.ipc import snapshot as snapshots
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.frames import FrameReader, encode_frame
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.router import Router

_RETRY_S: Final = 0.05
_READ_BYTES: Final = 1 << 20
_MAX_SNAPSHOT: Final = 256 << 20
_log = structlog.get_logger("router.control")


class Control:
    """Keeps a connection to ``control.sock``, reconnecting for ever."""

    def __init__(self, run_dir: Path, router: Router, loop: Loop) -> None:
        self._run_dir, self._router, self._loop = run_dir, router, loop
        self._socket: socket.socket | None = None
        self._frames = FrameReader(_MAX_SNAPSHOT)
        self._unsent = bytearray()
        self._begins = self._counts_anew = True
        self.told_to_end = False
        router.tell = self._say
        self._connect()

    def load_file(self) -> bool:
        """Start from the last snapshot on disk; False when there is none that can be read."""
        try:
            self._router.apply(snapshots.decode((self._run_dir / "snapshot.msgpack").read_bytes()))
        except (OSError, BedsitError) as e:
            _log.info("no snapshot on disk", why=str(e))
            return False
        return True

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._say(self._router.usage(anew=True))  # nobody can ask for it later
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            link.connect(str(self._run_dir / "control.sock"))
        except OSError:
            link.close()
            self._loop.later(_RETRY_S, self._connect)
            return
        link.setblocking(False)
        self._socket = link
        self._begins = self._counts_anew = True
        self._frames = FrameReader(_MAX_SNAPSHOT)
        self._unsent.clear()
        self._loop.watch(link.fileno(), self._read)
        self._say({"op": "hello", "pid": os.getpid(), "version": __version__})
        for slot in self._router.slots.values():  # a daemon that was away has missed these
            slot.hung_rid = 0  # told again, if it still runs
            if slot.lost:
                self._say({"op": "lost", "slot": slot.view.id, "ran": slot.running})
            elif slot.drained_told:
                self._say({"op": "drained", "slot": slot.view.id})
            elif slot.overran and slot.in_flight:
                self._router.tell_overrun(slot)
        _log.info("daemon connected")

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_READ_BYTES)
            messages = self._frames.feed(data)
        except BlockingIOError:
            return
        except (OSError, BedsitError) as e:
            _log.warning("daemon link broken", why=str(e))
            data, messages = b"", []
        for message in messages:
            self._obey(message)
        if not data:
            _log.info("daemon gone; serving on")
            self.close()
            self._loop.later(_RETRY_S, self._connect)

    def _obey(self, message: Any) -> None:
        match message:
            case {"op": "snapshot", "snapshot": bytes(data)}:
                snapshot = snapshots.decode(data)
                self._router.apply(snapshot, anew=self._begins)
                self._begins = False
                self._say({"op": "ack", "serial": snapshot.serial})
            case {"op": "stats"}:
                self._say({"op": "stats", "tenants": self._router.statistics()})
            case {"op": "activity"}:
                self._say({"op": "activity", "tenants": self._router.activity()})
            case {"op": "usage"}:
                self._say(self._router.usage(anew=self._counts_anew))
                self._counts_anew = False
            case {"op": "shutdown"}:
                self.told_to_end = True
                self._loop.stop()
            case _:
                _log.warning("unknown order from the daemon")

    def _say(self, message: dict[str, Any]) -> None:
        if self._socket is None:
            return
        self._unsent += encode_frame(message)
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return  # the daemon is busy; the next message takes the rest along
        except OSError:
            return  # the reader sees the end of the link
        del self._unsent[:sent]
