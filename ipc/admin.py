"""The client of the admin API: one request at a time over the daemon's UNIX socket, framed msgpack.

    request   {"v": 1, "op": name, "args": {...}}
    answers   any number of {"progress": {...}} and {"item": {...}}, then {"ok": true, "result": ...}
              or {"ok": false, "error": {...}}; before a body, {"continue": true} asks for it

The daemon may stop and start between two calls: a connection that it closed meanwhile is opened again. Inside a call it
is not, because whether the daemon did the work before it went is not known; that ends in ``daemon.unavailable``.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple, Self

from bedsit.ipc.errors import BedsitError, error, error_from_wire
from bedsit.ipc.frames import FrameReader, encode_frame

VERSION: Final = 1
SOCKET_NAME: Final = "admin.sock"
CHUNK_BYTES: Final = 1 << 20
_READ_BYTES: Final = 256 << 10


class Phase(NamedTuple):
    """A step of a long call: it begins where *ms* is None, and took that many milliseconds where it is not."""

    name: str
    ms: float | None


class Body(NamedTuple):
    """Bytes that follow a request once the daemon asks for them: *size* bytes read from *file*."""

    file: BinaryIO
    size: int


class AdminClient:
    """A connection to the admin socket at *path*. Blocks; for one thread. Connects when first used.

    ``call`` and ``stream`` raise BedsitError: what the daemon answered, ``daemon.unavailable`` when nobody answers,
    ``permission.denied`` when the socket may not be opened, ``deadline.exceeded`` when *timeout_s* has passed.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float | None = None) -> None:
        """*timeout_s* bounds each call as a whole; None waits as long as the daemon lives."""
        self._path = Path(path)
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None
        self._reader = FrameReader()
        self._inbox: list[Any] = []

    def call(
        self,
        op: str,
        *,
        progress: Callable[[Phase], None] | None = None,
        body: Body | None = None,
        **args: Any,
    ) -> Any:
        """Run *op* and return its result. Arguments that are None are left out. *progress* hears of each phase."""
        answer = None
        for answer in self._answers(op, args, body):
            if "progress" in answer and progress is not None:
                progress(_read_phase(answer["progress"]))
        return answer["result"] if answer else None

    def stream(self, op: str, **args: Any) -> Iterator[dict[str, Any]]:
        """Run *op* and give its items as they come. Closing the iterator early closes the connection."""
        for answer in self._answers(op, args, None):
            item = answer.get("item")
            if isinstance(item, dict):
                yield item

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._sock is not None:
            self._sock.close()
        self._sock, self._reader, self._inbox = None, FrameReader(), []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self, op: str, args: dict[str, Any], body: Body | None) -> Iterator[dict[str, Any]]:
        """The answers to one request, the final one last. Leaves the connection open only after a whole exchange."""
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        given = {name: value for name, value in args.items() if value is not None}
        final, in_step = False, True
        try:
            self._connect(deadline)
            # A daemon that refuses the caller answers and closes without reading: its answer is still to be read.
            with contextlib.suppress(ConnectionError):
                self._send(encode_frame({"v": VERSION, "op": op, "args": given}), deadline)
            while not final:
                answer = self._receive(deadline)
                if answer.get("continue") is True and body is not None:
                    with contextlib.suppress(ConnectionError):
                        in_step = self._pour(body, deadline)
                    continue
                final = "ok" in answer
                if final and answer["ok"] is not True:
                    raise error_from_wire(answer.get("error"))
                if final:
                    answer.setdefault("result", None)
                yield answer
        except ConnectionError as e:
            raise self._unreachable(e) from None
        finally:
            if not (final and in_step):
                self.close()

    def _pour(self, body: Body, deadline: float | None) -> bool:
        """Send the body in frames, listening meanwhile; False when the daemon refused it half-way."""
        left = body.size
        while left:
            chunk = body.file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise error("input.invalid", f"the file ended {left} bytes early", "do not change it meanwhile")
            left -= len(chunk)
            if not self._send(encode_frame(chunk), deadline, listening=True):
                return False
        return True

    def _send(self, data: bytes, deadline: float | None, *, listening: bool = False) -> bool:
        """Send all of *data*. False when *listening* and a final answer came first; the rest is then not sent."""
        view = memoryview(data)
        while view:
            if self._wait(select.POLLOUT | (select.POLLIN if listening else 0), deadline) & select.POLLIN:
                self._read()
                # Phases may come at any time; only a final answer says that nobody wants the rest.
                if any(isinstance(message, dict) and "ok" in message for message in self._inbox):
                    return False
            with contextlib.suppress(BlockingIOError):
                view = view[self._open_socket().send(view, socket.MSG_NOSIGNAL) :]
        return True

    def _receive(self, deadline: float | None) -> dict[str, Any]:
        while not self._inbox:
            self._wait(select.POLLIN, deadline)
            self._read()
        message = self._inbox.pop(0)
        if not isinstance(message, dict):
            raise error("wire.malformed", "the daemon sent something that is not an answer")
        return message

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self._open_socket().recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError
            self._inbox += self._reader.feed(data)

    def _wait(self, wanted: int, deadline: float | None) -> int:
        """Block until the socket is ready for one of *wanted*; which ones it is ready for."""
        poller = select.poll()
        poller.register(self._open_socket(), wanted)
        left_ms = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
        ready = poller.poll(left_ms)
        if not ready:
            raise error("deadline.exceeded", f"no answer from the daemon within {self._timeout_s:g} s")
        return ready[0][1]

    def _open_socket(self) -> socket.socket:
        if self._sock is None:
            raise ConnectionResetError
        return self._sock

    def _connect(self, deadline: float | None) -> None:
        if self._sock is not None and not _is_stale(self._sock):
            return
        self.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A UNIX socket connects at once or waits for room in the listener's queue, no longer than this.
            sock.settimeout(5.0 if deadline is None else max(0.001, deadline - time.monotonic()))
            sock.connect(os.fspath(self._path))
            sock.setblocking(False)
        except (OSError, ValueError) as e:
            sock.close()
            raise self._unreachable(e) from None
        self._sock = sock

    def _unreachable(self, cause: Exception) -> BedsitError:
        if isinstance(cause, PermissionError):
            return error(
                "permission.denied",
                f"{self._path} may not be opened by this user",
                "use root, or a member of the admin group",
            )
        if isinstance(cause, (FileNotFoundError, ConnectionRefusedError)):
            return error("daemon.unavailable", f"no daemon answers at {self._path}", "start it: bedsit up")
        if isinstance(cause, ConnectionError):
            return error(
                "daemon.unavailable",
                "the daemon closed the connection before it answered",
                "see what was done: bedsit events",
            )
        return error("daemon.unavailable", f"no daemon answers at {self._path}: {cause}", "start it: bedsit up")


def _is_stale(sock: socket.socket) -> bool:
    """Whether the peer has closed an idle connection, or sent something nobody asked for."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _read_phase(fields: object) -> Phase:
    table = fields if isinstance(fields, dict) else {}
    ms = table.get("ms")
    return Phase(str(table.get("phase", "")), float(ms) if isinstance(ms, (int, float)) else None)
