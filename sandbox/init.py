"""A slot's pid 1: ours, and believed. It passes packets on, keeps the worker's output, and tells of the worker's end.

It reads nothing that the worker sends: packets are bytes to it, output is lines of printable text. All that the worker
can make it hold or do is bounded, and what is dropped is counted. It has no capability and cannot signal the worker,
which is another user; but when it ends, the kernel ends everything in the slot (pid_namespaces(7)).

Guarantees: until the daemon commits the slot ("C" on the build pipe), the daemon's death is the slot's.
After that the slot outlives daemon and zygote; a new daemon finds the listener by its path, and knows the slot by the
nonce that came with the commit: zygote, worker and other slots, copies of one another, never have it in their memory.
"""

import collections
import contextlib
import fcntl
import functools
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from bedsit.ipc import seqpacket
from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.budget import Budget
from bedsit.sandbox.jail.context import Context
from bedsit.sandbox.output import Output
from bedsit.sandbox.refusals import Refusals

PROTOCOL: Final = 4
LINGER_S: Final = 30.0
_HUNG_UP_S: Final = 1.0  # from a worker's last word to its end, or else the slot's: nobody could hear from it any more
MAX_FDS: Final = 250  # the kernel's own limit is 253 (SCM_MAX_FD)
MAX_WORKER_PACKET: Final = 64 << 10
BACKLOG: Final = 64
_CONNECTIONS: Final = 8
_CHUNK: Final = 64 << 10
_COMMIT_BYTES: Final = 256
_REAPED_AT_ONCE: Final = 64
# A load of many models says much at once; afterwards a worker has little to say.
_PACKETS_PER_S: Final = 64.0
_PACKETS_AT_ONCE: Final = 512

Message = Mapping[str, Any]
Handler = Callable[[int], object]


def run(context: Context) -> NoReturn:
    """Be the slot's init until the daemon says bye, the worker is gone long enough, or the build is abandoned."""
    init = _Init(context)
    context.tell("up", steps_ms=context.steps_ms, missing=context.missing, proven=context.proven)
    context.report.close()
    while True:
        init.turn()


class _Connection:
    """A daemon's connection, and what it has not taken yet. It hears of the worker once it has spoken itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.listens = False
        self.pending: collections.deque[Message] = collections.deque()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.pending:
                seqpacket.send_packet(self.sock, self.pending[0], flags=socket.MSG_DONTWAIT)
                self.pending.popleft()


class _Init:
    def __init__(self, context: Context) -> None:
        self._order = context.order
        self._worker = context.worker_pid
        self._build = context.build
        self._listener = socket.socket(fileno=context.listener)
        self._control = socket.socket(fileno=context.control)
        self._streams = dict(zip(("out", "err"), context.outputs, strict=True))
        self._connections: dict[int, _Connection] = {}
        self._backlog: collections.deque[Message] = collections.deque(maxlen=BACKLOG)
        self._packets = Budget(_PACKETS_PER_S, _PACKETS_AT_ONCE)
        self._output = Output()
        self._refusals = Refusals(context.refusals)
        self._nonce = ""
        self._assigned = False
        self._status: int | None = None
        self._leave_at: float | None = None
        for fd in self._streams.values():
            os.set_blocking(fd, False)
        self._wakeup, write = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the wakeup descriptor speaks
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        self._may_have_dead = True

    def turn(self) -> None:
        """Wait for something to happen and deal with it."""
        handlers = self._handlers()
        poll = select.poll()
        for fd, (events, _) in handlers.items():
            poll.register(fd, events)
        for fd, events in poll.poll(self._patience_ms()):
            handlers[fd][1](events)
        if self._may_have_dead:
            self._reap()
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            os._exit(0)

    def _handlers(self) -> dict[int, tuple[int, Handler]]:
        handlers: dict[int, tuple[int, Handler]] = {
            self._wakeup: (select.POLLIN, self._on_wakeup),
            self._listener.fileno(): (select.POLLIN, self._on_listener),
        }
        if self._build >= 0:
            handlers[self._build] = (select.POLLIN, self._on_build)
        if self._refusals.fd >= 0:
            handlers[self._refusals.fd] = (select.POLLIN, self._on_refusal)
        for stream, fd in self._streams.items():
            handlers[fd] = (select.POLLIN, functools.partial(self._on_output, stream))
        for fd, connection in self._connections.items():
            wanted = select.POLLIN | (select.POLLOUT if connection.pending else 0)
            handlers[fd] = (wanted, functools.partial(self._on_connection, connection))
        # A daemon that does not read, or a worker that talks too much, makes the worker wait: nothing piles up here.
        if self._control.fileno() >= 0 and self._packets.has(1) and not self._is_behind():
            handlers[self._control.fileno()] = (select.POLLIN, self._on_control)
        return handlers

    def _listeners(self) -> list[_Connection]:
        return [connection for connection in self._connections.values() if connection.listens]

    def _is_behind(self) -> bool:
        return any(connection.pending for connection in self._connections.values())

    def _patience_ms(self) -> float | None:
        if self._may_have_dead:
            return 0.0
        waits = [] if self._packets.has(1) else [self._packets.wait_s(1)]
        if self._leave_at is not None:
            waits.append(self._leave_at - time.monotonic())
        return max(0.0, min(waits)) * 1000 if waits else None

    def _on_build(self, _: int) -> None:
        commit = os.read(self._build, _COMMIT_BYTES)
        if commit[:1] != b"C":
            os._exit(1)  # the daemon is gone, and nobody knows of this slot
        self._nonce = commit[1:].decode("ascii", "replace")
        os.close(self._build)
        self._build = -1

    def _on_wakeup(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 512)
        self._may_have_dead = True

    def _reap(self) -> None:
        """Take some of the dead: children of the worker's (profile `subprocess`) may die faster than they are taken.

        When some may be left, the next turn comes at once: the signals of those are spent.
        """
        self._may_have_dead = False
        with contextlib.suppress(ChildProcessError):
            for _ in range(_REAPED_AT_ONCE):
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self._worker:
                    self._bury(status)
            self._may_have_dead = True

    def _bury(self, status: int) -> None:
        """The worker is gone: read what it left behind, then tell every daemon that is there.

        No more than a pipe and a socket hold: children of the worker's (profile `subprocess`) may go on for ever.
        """
        for stream, fd in tuple(self._streams.items()):
            left = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
            while left > 0 and (taken := self._on_output(stream)):
                left -= taken
        self._output.finish()
        for _ in range(_PACKETS_AT_ONCE):
            if not self._on_control():
                break
        self._status = status
        self._leave_at = None
        for connection in self._listeners():
            self._tell_end(connection)

    def _tell_end(self, connection: _Connection) -> None:
        self._send(connection, {"op": "exited", "status": self._status})
        self._leave_at = self._leave_at or time.monotonic() + LINGER_S

    def _on_output(self, stream: str, _: int = 0) -> int:
        """Take a piece of the worker's output. Returns how many bytes; 0 when there is nothing more now."""
        if stream not in self._streams:
            return 0  # it ended earlier in this turn
        try:
            data = os.read(self._streams[stream], _CHUNK)
        except BlockingIOError:
            return 0
        if not data:
            os.close(self._streams.pop(stream))
            return 0
        self._output.feed(stream, data)
        return len(data)

    def _on_control(self, _: int = 0) -> bool:
        """Pass one packet of the worker's on, unread. Returns whether there may be more."""
        if self._control.fileno() < 0:
            return False  # it ended earlier in this turn
        try:
            body, _fds = seqpacket.recv_bytes(self._control, flags=socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except BedsitError:
            body = b""  # too long, or with descriptors that the kernel had no room to give us
        except OSError:
            body = None
        if body is None:
            self._control.close()
            if self._status is None:
                self._leave_at = time.monotonic() + _HUNG_UP_S
            return False
        self._packets.take(1)
        if 0 < len(body) <= MAX_WORKER_PACKET:
            message = {"op": "worker", "body": body}
            self._backlog.append(message)
            for connection in self._listeners():
                self._send(connection, message)
        else:
            self._output.dropped_bytes += len(body)
        return True

    def _on_refusal(self, events: int) -> None:
        """The worker made a system call that is on no list: refuse it, and tell of it once."""
        self._refusals.answer(events)
        for connection in self._listeners():
            self._tell_refusals(connection)

    def _tell_refusals(self, connection: _Connection) -> None:
        for number in self._refusals.take_news():
            self._send(connection, {"op": "refused_call", "number": number})

    def _on_listener(self, _: int) -> None:
        sock, _address = self._listener.accept()
        if len(self._connections) >= _CONNECTIONS:
            sock.close()
        else:
            self._connections[sock.fileno()] = _Connection(sock)

    def _on_connection(self, connection: _Connection, events: int) -> None:
        if connection.sock.fileno() < 0:
            return  # dropped earlier in this turn
        fds: list[int] = []
        try:
            if events & select.POLLOUT:
                connection.flush()
            if events & ~select.POLLOUT:
                message, fds = seqpacket.recv_packet(connection.sock, MAX_FDS, socket.MSG_DONTWAIT)
                if message is None:
                    self._drop(connection)
                else:
                    self._answer(connection, message, fds)
        except BlockingIOError:
            pass
        except (BedsitError, OSError):
            self._drop(connection)
        finally:
            seqpacket.close_all(fds)

    def _answer(self, connection: _Connection, message: Message, fds: list[int]) -> None:
        match message.get("op"):
            case "hello":
                self._send(connection, self._introduction())
                if not connection.listens:
                    self._catch_up(connection)
            case "assign":
                self._send(connection, self._assign(message, fds))
            case "bye" if self._status is not None:
                os._exit(0)
            case op:
                raise error("wire.malformed", f"{op!r} is not understood now")
        connection.listens = True

    def _catch_up(self, connection: _Connection) -> None:
        for kept in self._backlog:
            self._send(connection, kept)
        self._tell_refusals(connection)
        if self._status is not None:
            self._tell_end(connection)

    def _introduction(self) -> Message:
        return {
            "op": "hello",
            "slot": self._order.slot,
            "nonce": self._nonce,
            "protocol": PROTOCOL,
            "state": "assigned" if self._assigned else "blank",
            "status": self._status,
            "dropped_bytes": self._output.dropped_bytes,
        }

    def _assign(self, message: Message, fds: list[int]) -> Message:
        """A slot serves one tenant, once: hand the worker its order and keep the logs, which leave *fds*."""
        if self._assigned or self._status is not None:
            return {"op": "refused", "message": "the slot is assigned already" if self._assigned else "no worker"}
        names, body, log_bytes = message.get("fds"), message.get("body"), message.get("log_bytes")
        if not isinstance(names, list) or len(names) != len(fds) or names[:2] != ["log", "log"]:
            raise error("wire.malformed", "an assignment brings two logs, then artifacts")
        if not isinstance(body, bytes) or not isinstance(log_bytes, int) or log_bytes <= 0:
            raise error("wire.malformed", "an assignment has a body and a size of log")
        try:
            seqpacket.send_bytes(self._control, body, fds[2:], socket.MSG_DONTWAIT)
        except OSError as e:
            return {"op": "refused", "message": f"the worker does not take it: {e.strerror}"}
        self._output.open((fds[0], fds[1]), log_bytes)
        del fds[:2]
        self._assigned = True
        return {"op": "assigned"}

    def _send(self, connection: _Connection, message: Message) -> None:
        connection.pending.append(message)
        try:
            connection.flush()
        except OSError:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.sock.fileno(), None)
        connection.sock.close()
        connection.pending.clear()
