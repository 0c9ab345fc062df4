"""The router's link to one slot: a connection for packets and arenas, and, where a client asked for it, a ZeroMQ lane.

The sockets lie in the slot's own folder, so the socket a packet arrives on is the sender's identity. The worker is
hostile: its answers count only for requests that are in flight *here*, and what does not fit is counted and dropped.
A slot is *ready* once its worker has connected and said READY.

Arenas are handed over on the connection that requests travel on, so a request never overtakes its arena. Only on the
ZeroMQ lane could it: that one is used for an arena after the worker has acknowledged it.
"""

import contextlib
import itertools
import os
import secrets
import socket
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import structlog
import zmq

from bedsit.ipc import leasepage
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.fastlane import ROOM
from bedsit.ipc.leasepage import LeasePage, Turn
from bedsit.ipc.seqpacket import refuse_descriptors, send_bytes
from bedsit.ipc.slot import NOTE_BYTES, Note, Word, decode_note, encode_note
from bedsit.ipc.snapshot import SlotView
from bedsit.ipc.wire import Kind, pack_packet, read_route, readdress
from bedsit.ipc.zmqlane import ZmqChannel
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.requests import Batch, Request
from bedsit.supervisor.router.sessions import Session

_BUDGET: Final = 64
_REST_S: Final = 0.005  # how long a worker that sends nonsense is not read
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_BUFFER_BYTES: Final = 1 << 20  # of packets under way to one worker; the kernel gives what its wmem_max allows
# Requests at a worker beyond which the connection is used for ZeroMQ sessions, too. That lane takes 256 packets, and
# tells only now and then what its other end has read; a full one would be taken for a worker that is lost.
_ZMQ_HELD: Final = 128
_UCRED: Final = struct.Struct("3i")
_REQUEST: Final = int(Kind.REQUEST)
_RESUME: Final = encode_note(Note(Word.RESUME))
_ANSWERS: Final = (int(Kind.RESPONSE), int(Kind.ERROR))
_log = structlog.get_logger("router.slot")

Answer = Callable[["SlotLink", Request, int, bytes], None]
Notify = Callable[["SlotLink"], None]


class TurnOver(Protocol):
    """Hears that a worker gives its turn back, with its batch *done* or not; False when it has none to give."""

    def __call__(self, slot: "SlotLink", *, done: bool) -> bool:
        """Whether it had."""


_Post = tuple[bytes, int, int]  # a packet, an arena's descriptor beside it or -1, and the request's rid or 0


class SlotLink:
    """Everything the router knows of one slot. Owns a listening socket and at most one connection."""

    def __init__(
        self,
        view: SlotView,
        folder: Path,
        loop: Loop,
        *,
        on_answer: Answer,
        on_ready: Notify,
        on_lost: Notify,
        on_misbehaved: Notify,
        on_turn_over: TurnOver,
    ) -> None:
        self.update(view)
        self.in_flight: dict[int, Request] = {}
        self.batches = 0  # under way
        self.lost = False
        self.hung_rid = 0  # the call that the daemon was told to be so
        self.overran = ""  # the device that it kept for too long, as the daemon was told
        self.drained_told = False
        self.misbehaved = 0
        self.received = 0  # packets on the ZeroMQ lane
        self.free_ns = 0  # when its worker gave the last answer
        self.lane_path = str(folder / "router.sock")
        self._folder = folder
        self._loop = loop
        self._on_answer, self._on_ready, self._on_lost = on_answer, on_ready, on_lost
        self._on_misbehaved, self._on_turn_over = on_misbehaved, on_turn_over
        self._rids = itertools.count(_first_rid())
        self._closed = False
        self._said_ready = False
        self._resting = False
        self._connection: socket.socket | None = None
        self._unsent: deque[_Post] = deque()
        self._behind: set[int] = set()  # requests among the unsent
        self._given: set[int] = set()  # arenas
        self._mapped: set[int] = set()  # those acknowledged
        self._zmq: ZmqChannel | None = None
        self._zmq_ready = False
        self._cut = False
        self.page = LeasePage(folder / leasepage.NAME)  # first: a worker that connects finds it
        # Of a router before this one, which may have let it run alone, too.
        self.had_turn = self.page.is_old and self.page.state != Turn.WAIT and view.state != "loading"
        if not self.had_turn:
            self.page.free()
        self._listener = _listen(folder / "fd.sock")
        loop.watch(self._listener.fileno(), self._accept)

    @property
    def is_ready(self) -> bool:
        """Whether requests may be dispatched here."""
        return self._said_ready and not self.lost and self.view.state == "serving"

    @property
    def running(self) -> tuple[int, int] | None:
        """Model and version of the request that its worker is at, if there is one."""
        oldest = next(iter(self.in_flight.values()), None)
        return oldest.line.key if oldest is not None else None

    @property
    def running_rid(self) -> int:
        """Number of the request that its worker is at; 0 when it has none."""
        return next(iter(self.in_flight), 0)

    def runs_for_ns(self, now_ns: int) -> int:
        """For how long its worker has been at one request; 0 when it has none."""
        oldest = next(iter(self.in_flight.values()), None)
        if oldest is None:
            return 0
        if oldest.batch is not None and oldest.batch.gate is not None:
            return oldest.batch.ran_ns(now_ns)
        return now_ns - max(oldest.sent_ns, self.free_ns)

    @property
    def lane_is_open(self) -> bool:
        """Whether its worker can still send packets over ZeroMQ, lost or not."""
        return self._zmq is not None

    def update(self, view: SlotView) -> None:
        """Take a new view of the slot."""
        self.view = view
        self.models = frozenset(view.models)
        self.is_draining = view.state == "draining"

    def open_zmq(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Have a ZeroMQ lane to this worker as well, from when it has connected to it."""
        if self._zmq is None and not self._cut and not self._closed:
            self._zmq = ZmqChannel(context, self.lane_path, bind=True)
            (self._folder / "router.sock").chmod(0o666)  # the folder's mode is the wall
            self._loop.watch(self._zmq.fileno(), self._drain_zmq, edge=True)
            self._loop.again(self._drain_zmq)
            self._meet()

    def send_batch(self, batch: Batch, now_ns: int) -> None:
        """Send a batch to the worker, which runs it when the last of its packets has come: all of them on one lane."""
        self.batches += 1
        left = len(batch.requests)
        # In turns one may be sent behind another, and must not overtake it: it would run in its turn.
        over_zmq = (
            self._zmq_ready
            and (batch.gate is None or not batch.gate.has_turns)
            and len(self.in_flight) + left <= _ZMQ_HELD
            and all(
                request.session.token and request.session.arena_number in self._mapped for request in batch.requests
            )
        )
        for request in batch.requests:
            left -= 1
            request.batch = batch
            self._send_request(request, left, now_ns, over_zmq=over_zmq)

    def send_one(self, request: Request, now_ns: int) -> None:
        """Send a request that goes alone."""
        self.batches += 1
        session = request.session
        over_zmq = (
            self._zmq_ready
            and bool(session.token)
            and len(self.in_flight) < _ZMQ_HELD
            and session.arena_number in self._mapped
        )
        self._send_request(request, 0, now_ns, over_zmq=over_zmq)

    def _send_request(self, request: Request, left: int, now_ns: int, *, over_zmq: bool) -> None:
        session = request.session
        number = session.arena_number
        if number not in self._given:
            self._give(session)
        request.attempts += 1
        request.slot = self
        request.sent_ns = now_ns
        rid = request.rid = next(self._rids)
        self.in_flight[rid] = request
        session.in_flight += 1
        packet = readdress(request.packet, _REQUEST, rid, number, left)
        if over_zmq and self._zmq is not None:
            if not self._zmq.send(packet):
                self._lose("the ZeroMQ lane takes nothing")
            self._loop.again(self._drain_zmq)
            return
        if not self._unsent and self._connection is not None:
            try:
                self._connection.send(packet, _SEND)
            except OSError:  # no room, or no worker: _post finds out which
                pass
            else:
                return
        self._post(packet, rid=rid)

    def _give(self, session: Session) -> None:
        """Hand the worker a session's arena; it gets there before any request that names it."""
        arena = session.arena
        self._given.add(arena.number)
        self._post(encode_note(Note(Word.GIVE, arena.number, arena.size_bytes)), os.dup(arena.fd))

    def cancel(self, request: Request) -> None:
        """Tell the worker that nobody waits for this any more; it answers all the same."""
        if request.rid in self.in_flight:
            self._post(pack_packet(Kind.CANCEL, request.rid))

    def resume(self) -> None:
        """Tell the worker to look at its lease page; once is enough, where it has not read the last word yet."""
        if not self._unsent or self._unsent[-1][0] is not _RESUME:
            self._post(_RESUME)

    def forget_arena(self, session: Session) -> None:
        """The session is over and nothing of it is in flight: the worker may unmap its arena."""
        number = session.arena.number
        if number in self._given:
            self._given.discard(number)
            self._mapped.discard(number)
            self._post(encode_note(Note(Word.FORGET, number)))

    def cut_off(self) -> None:
        """Give back all that its ZeroMQ lane made the router hold, now: its worker counts as lost."""
        self._cut = True
        self._close_zmq()
        self._lose("its lane uses up the router's memory or descriptors")

    def close(self) -> list[Request]:
        """The slot is gone: close everything and give back what was in flight, oldest first."""
        self._closed = True
        self._close_zmq()
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._hang_up()
        self.page.close()
        orphans = [self.in_flight[rid] for rid in sorted(self.in_flight)]
        for request in orphans:
            request.session.in_flight -= 1
        self.in_flight.clear()
        return orphans

    # --- packets ---------------------------------------------------------------------------------------------------

    def _post(self, packet: bytes, fd: int = -1, rid: int = 0) -> None:
        """Send, or keep until there is room: what is kept is bounded by what may be in flight."""
        if not self._unsent and self._send(packet, fd):
            return
        if self._connection is None:
            _close(fd)
            return
        self._unsent.append((packet, fd, rid))
        if rid:
            self._behind.add(rid)
        self._loop.watch_room(self._connection.fileno(), wanted=True)

    def _send(self, packet: bytes, fd: int) -> bool:
        """Hand one packet to the kernel; False when there is no room for it."""
        if self._connection is None:
            _close(fd)
            return True
        try:
            if fd < 0:
                self._connection.send(packet, _SEND)
            else:
                send_bytes(self._connection, packet, [fd], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as e:
            self._lose(f"the worker takes nothing: {e.strerror}")
        _close(fd)
        return True

    def _flush(self) -> None:
        while self._unsent:
            packet, fd, rid = post = self._unsent.popleft()  # first: a failure closes what is still in there
            if not self._send(packet, fd):
                self._unsent.appendleft(post)
                return
            self._behind.discard(rid)
        if self._connection is not None:
            self._loop.watch_room(self._connection.fileno(), wanted=False)

    def _hear(self) -> None:
        """Take what the worker sent: as long as answers are due, a budget's worth per turn."""
        if self._unsent:
            self._flush()
        before = self.misbehaved
        for _ in range(_BUDGET):
            connection = self._connection
            if connection is None:
                return
            try:
                packet = connection.recv(ROOM, _DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if not packet:
                self._lose("the worker hung up")
                return
            if len(packet) == NOTE_BYTES:
                self._note(packet)
            else:
                self._take(packet, over_zmq=False)
            if not self.in_flight:
                break
        if self.misbehaved != before:
            self._rest()

    def _drain_zmq(self) -> None:
        """Take answers off the ZeroMQ lane, a budget's worth per turn."""
        lane = self._zmq
        if lane is None:
            return  # the loop still had this slot on its list for another look
        for _ in range(_BUDGET):
            packet = lane.receive()
            if packet is None:
                return
            self.received += 1
            self._take(packet, over_zmq=True)
            if self._zmq is None:
                return
        self._loop.again(self._drain_zmq)

    def _take(self, packet: bytes, *, over_zmq: bool) -> None:
        try:
            kind, rid = read_route(packet)
        except BedsitError:
            self._misbehave("malformed")
            return
        if self._behind and rid in self._behind:
            # Who guesses its number would have us keep one more for each, and read none.
            self._misbehave("an answer to what it has not been sent")
            return
        request = self.in_flight.pop(rid, None) if kind in _ANSWERS else None
        if request is not None:
            request.session.in_flight -= 1
            self._on_answer(self, request, kind, packet)
        elif kind == Kind.READY:
            self._become_ready(over_zmq=over_zmq)
        else:
            self._misbehave("an answer that nobody asked for")

    def _become_ready(self, *, over_zmq: bool) -> None:
        if self._zmq_ready if over_zmq else self._said_ready:
            self._misbehave("ready once more")
        elif over_zmq:
            self._zmq_ready = True
        else:
            self._said_ready = True
            self._meet()
            self._on_ready(self)

    def _meet(self) -> None:
        if self._zmq is not None and self._said_ready:
            self._post(encode_note(Note(Word.MEET)))

    def _note(self, data: bytes) -> None:
        note = decode_note(data)
        if note.word in (Word.YIELD, Word.END):
            if note.size != self.page.epoch or not self._on_turn_over(self, done=note.word == Word.END):
                self._misbehave("the end of a turn that it does not have, or that is not over")
            return
        if note.word != Word.MAPPED or note.number not in self._given or note.number in self._mapped:
            self._misbehave("an acknowledgement of nothing")
            return
        self._mapped.add(note.number)

    # --- the connection --------------------------------------------------------------------------------------------

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
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._connection = connection
        self._loop.watch(connection.fileno(), self._hear)

    def _rest(self) -> None:
        """Do not read this worker for a moment: a flood of nonsense must not cost the others their router."""
        if self._connection is not None and not self._resting:
            self._resting = True
            self._loop.unwatch(self._connection.fileno())
            self._loop.later(_REST_S, self._wake)

    def _wake(self) -> None:
        self._resting = False
        if self._connection is not None:
            self._loop.watch(self._connection.fileno(), self._hear)
            self._loop.watch_room(self._connection.fileno(), wanted=bool(self._unsent))

    def _lose(self, why: str) -> None:
        if not self.lost:
            self.lost = True
            self._hang_up()
            _log.warning("slot lost", slot=self.view.id, tenant=self.view.tenant, why=why)
            self._on_lost(self)

    def _hang_up(self) -> None:
        for _, fd, _ in self._unsent:
            _close(fd)
        self._unsent.clear()
        self._behind.clear()
        if self._connection is not None:
            self._loop.unwatch(self._connection.fileno())
            self._connection.close()
            self._connection = None

    def _close_zmq(self) -> None:
        if self._zmq is not None:
            self._loop.unwatch(self._zmq.fileno())
            self._zmq.close()
            self._zmq, self._zmq_ready = None, False

    def _misbehave(self, what: str) -> None:
        self.misbehaved += 1
        if self.misbehaved & (self.misbehaved - 1) == 0:  # 1, 2, 4, 8 ...: a flood must not become a log flood
            _log.warning("worker misbehaved", slot=self.view.id, what=what, count=self.misbehaved)
            self._on_misbehaved(self)


def _first_rid() -> int:
    """Where a router's numbers for requests begin: no late answer to the router before it fits one of its own."""
    return 1 + secrets.randbelow(1 << 62)


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


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
