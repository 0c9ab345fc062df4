"""The router's link to one slot: a lane for packets, and a SEQPACKET socket that hands arenas out.

The sockets lie in the slot's own folder, so the socket a packet arrives on is the sender's identity. The worker is
hostile: its answers count only for requests that are in flight *here*, and what does not fit is counted and dropped.
A slot is *ready* when its worker holds the descriptor socket open and said READY on the lane.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
import zmq

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.lane import ZmqChannel
from bedsit.ipc.seqpacket import refuse_descriptors, send_bytes
from bedsit.ipc.slot import ARENA_MESSAGE_BYTES, ArenaMessage, ArenaWord, decode_arena, encode_arena
from bedsit.ipc.snapshot import SlotView
from bedsit.ipc.wire import Envelope, Kind, read_envelope, readdress
from bedsit.supervisor.router.arenas import Arena
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.requests import Request
from bedsit.supervisor.router.sessions import Session

_BUDGET: Final = 64
_UCRED: Final = struct.Struct("3i")
_log = structlog.get_logger("router.slot")

Answer = Callable[["SlotLink", Request, Envelope, bytes], None]
Notify = Callable[["SlotLink"], None]


class SlotLink:
    """Everything the router knows of one slot. Owns two listening sockets and at most one connection."""

    def __init__(
        self,
        view: SlotView,
        folder: Path,
        context: "zmq.Context[zmq.Socket[bytes]]",
        loop: Loop,
        *,
        on_answer: Answer,
        on_ready: Notify,
        on_lost: Notify,
        on_misbehaved: Notify,
    ) -> None:
        self.update(view)
        self.in_flight: dict[int, Request] = {}
        self.lost = False
        self.drained_told = False
        self.misbehaved = 0
        self.received = 0  # packets
        self.lane_path = str(folder / "router.sock")
        self._loop = loop
        self._on_answer, self._on_ready, self._on_lost = on_answer, on_ready, on_lost
        self._on_misbehaved = on_misbehaved
        self._closed = False
        self._cut = False
        self._said_ready = False
        self._connection: socket.socket | None = None
        self._arenas: set[int] = set()  # acknowledged
        self._parked: dict[int, list[tuple[int, Request]]] = {}  # by arena number, until acknowledged
        with contextlib.ExitStack() as undo:
            self._lane = ZmqChannel(context, self.lane_path, bind=True)
            undo.callback(self._lane.close)
            (folder / "router.sock").chmod(0o666)
            self._listener = _listen(folder / "fd.sock")
            undo.pop_all()
        loop.watch(self._lane.fileno(), self.drain, edge=True)
        loop.again(self.drain)
        loop.watch(self._listener.fileno(), self._accept)

    @property
    def is_ready(self) -> bool:
        """Whether requests may be dispatched here."""
        return self._said_ready and self._connection is not None and not self.lost and self.view.state == "serving"

    @property
    def lane_is_open(self) -> bool:
        """Whether its worker can still send packets, lost or not."""
        return not self._cut

    def update(self, view: SlotView) -> None:
        """Take a new view of the slot."""
        self.view = view
        self.models = frozenset(view.models)

    def dispatch(self, rid: int, request: Request) -> None:
        """Send a request to the worker; first hand it the session's arena where it does not have it yet."""
        request.attempts += 1
        self.in_flight[rid] = request
        arena = request.session.arena
        if arena.number in self._arenas:
            self._send(rid, request)
        elif arena.number in self._parked:
            self._parked[arena.number].append((rid, request))
        elif self._give(arena):
            self._parked[arena.number] = [(rid, request)]

    def forget_arena(self, session: Session) -> None:
        """The session is over and nothing of it is in flight: the worker may unmap its arena."""
        if session.arena.number in self._arenas:
            self._arenas.discard(session.arena.number)
            self._tell(ArenaMessage(ArenaWord.FORGET, session.arena.number))

    def holds(self, session: Session) -> bool:
        """Whether a request of that session is in flight here."""
        return any(request.session is session for request in self.in_flight.values())

    def drain(self) -> None:
        """Take answers off the lane, a budget's worth per turn."""
        if self._closed or self._cut:
            return  # the loop still had this slot on its list for another look
        for _ in range(_BUDGET):
            packet = self._lane.receive()
            if packet is None:
                return
            self.received += 1
            try:
                envelope = read_envelope(packet)
            except BedsitError:
                self._misbehave("malformed")
                continue
            if envelope.kind == Kind.READY:
                if not self._said_ready:
                    self._said_ready = True
                    self._on_ready(self)
                continue
            request = self.in_flight.get(envelope.id)
            if request is None or envelope.kind not in (Kind.RESPONSE, Kind.ERROR):
                self._misbehave("an answer that nobody asked for")
                continue
            del self.in_flight[envelope.id]
            self._on_answer(self, request, envelope, packet)
        self._loop.again(self.drain)

    def cut_off(self) -> None:
        """Give back all that this lane made the router hold, now: its worker counts as lost."""
        self._close_lane()
        self._lose("its lane uses up the router's memory or descriptors")

    def _close_lane(self) -> None:
        if not self._cut:
            self._cut = True
            self._loop.unwatch(self._lane.fileno())
            self._lane.close()

    def close(self) -> list[Request]:
        """The slot is gone: close everything and give back what was in flight, oldest first."""
        self._closed = True
        self._close_lane()
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._hang_up()
        orphans = [self.in_flight[rid] for rid in sorted(self.in_flight)]
        self.in_flight.clear()
        self._parked.clear()
        return orphans

    def _send(self, rid: int, request: Request) -> None:
        sent = self._lane.send(
            readdress(
                request.packet,
                request.envelope,
                rid,
                model_version=request.version,
                arena=request.session.arena.number,
            )
        )
        if not sent:
            # Cannot happen below max_inflight with a worker that ever connected; treat the worker as gone.
            self._lose("the lane takes nothing")
            return
        self._loop.again(self.drain)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # nobody there any more, or no descriptor left for it
            return
        uid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
        if uid != self.view.uid or self._connection is not None or self.lost:
            self._misbehave(f"a connection from uid {uid}")
            connection.close()
            return
        connection.setblocking(False)
        self._connection = connection
        self._loop.watch(connection.fileno(), self._read_descriptors)
        if self._said_ready:
            self._on_ready(self)

    def _read_descriptors(self) -> None:
        if self._connection is None:
            return
        try:
            data = self._connection.recv(ARENA_MESSAGE_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose("the worker hung up")
            return
        message = decode_arena(data)
        waiting = self._parked.pop(message.number, None) if message.word == ArenaWord.MAPPED else None
        if waiting is None:
            self._misbehave("an acknowledgement of nothing")
            return
        self._arenas.add(message.number)
        for rid, request in waiting:
            if rid in self.in_flight:
                self._send(rid, request)

    def _give(self, arena: Arena) -> bool:
        return self._tell(ArenaMessage(ArenaWord.GIVE, arena.number, arena.size_bytes), [arena.fd])

    def _tell(self, message: ArenaMessage, fds: Sequence[int] = ()) -> bool:
        if self._connection is None:
            return False
        try:
            send_bytes(self._connection, encode_arena(message), fds, socket.MSG_DONTWAIT)
        except OSError as e:  # also EAGAIN: a worker that does not read its descriptors is of no use
            self._lose(f"the worker takes no descriptor: {e.strerror}")
            return False
        return True

    def _lose(self, why: str) -> None:
        if not self.lost:
            self.lost = True
            self._hang_up()
            _log.warning("slot lost", slot=self.view.id, tenant=self.view.tenant, why=why)
            self._on_lost(self)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._loop.unwatch(self._connection.fileno())
            self._connection.close()
            self._connection = None

    def _misbehave(self, what: str) -> None:
        self.misbehaved += 1
        if self.misbehaved & (self.misbehaved - 1) == 0:  # 1, 2, 4, 8 ...: a flood must not become a log flood
            _log.warning("worker misbehaved", slot=self.view.id, what=what, count=self.misbehaved)
            self._on_misbehaved(self)


def _listen(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o666)  # noqa: PTH101 - the folder's mode is the wall; Path.chmod follows links
        refuse_descriptors(listener)
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    return listener
