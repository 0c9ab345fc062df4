"""A worker's way to its router: one connection for packets and arenas, and a ZeroMQ lane where it was told to.

While there is only the connection, a receive is one blocking system call. Packets are handed out in batches; what was
cancelled meanwhile is marked.
"""

import array
import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import zmq

from bedsit.ipc import wire
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.fastlane import ROOM
from bedsit.ipc.slot import NOTE_BYTES, Note, Word, decode_note, encode_note
from bedsit.ipc.wire import Kind
from bedsit.ipc.zmqlane import ZmqChannel
from bedsit.sandbox.worker.arenas import ArenaTable

_RETRY_S: Final = 0.02
_FD_SPACE: Final = socket.CMSG_SPACE(array.array("i").itemsize)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_FETCHED: Final = 64  # packets taken ahead at most
_BUFFER_BYTES: Final = 1 << 20
_CANCEL: Final = int(Kind.CANCEL)
_LONGEST_S: Final = 3600.0  # what poll(2) can wait for has an end


class Order(NamedTuple):
    """A request as it came, the fields of its `Envelope`, and how to answer it."""

    packet: bytearray
    fields: tuple[int, ...]
    reply: Callable[[bytes], None]


class Lanes:
    """Connects to the sockets in *run_dir*, waiting for the router for as long as it takes; again when it is gone."""

    def __init__(self, run_dir: str, arenas: ArenaTable) -> None:
        self._run_dir = run_dir
        self._arenas = arenas
        self._buffer = bytearray(ROOM)
        self._view = memoryview(self._buffer)
        self._inbox: deque[Order] = deque()
        self._batch: list[Order] = []  # handed out; it may wait for its turn
        self._cancelled: set[int] = set()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._zmq: ZmqChannel | None = None
        self._epoll: select.epoll | None = None
        self._connect()

    def next_batch(self, *, look: bool) -> list[Order]:
        """The requests that belong together, at least one; blocks until they are there.

        With *look* everything that has come is looked at first, so that a cancelled request is known before it runs: to
        be asked for when the call before took so long that looking costs nothing.
        """
        if look:
            self._fetch_all()
        if self._cancelled:  # of the last batch, some of it too late
            self._cancelled.intersection_update([order.fields[4] for order in self._inbox])
        batch: list[Order] = []
        self._batch = batch
        while not batch or batch[-1].fields[5]:  # packets of the same batch that follow
            while (order := self._next(batch)) is None:
                if self.hear():
                    self._batch = batch = []  # another router: what the last one sent is of no use
            batch.append(order)
        return batch

    def is_cancelled(self, order: Order) -> bool:
        """Whether nobody waits for this any more; to be asked once."""
        if self._cancelled and order.fields[4] in self._cancelled:
            self._cancelled.discard(order.fields[4])
            return True
        return False

    def _next(self, batch: list[Order]) -> Order | None:
        """Take what belongs to *batch* out of the inbox: all of it came one way, and others the other way meanwhile."""
        inbox = self._inbox
        if not batch or self._zmq is None:
            return inbox.popleft() if inbox else None
        for index, order in enumerate(inbox):
            if order.reply == batch[0].reply:
                del inbox[index]
                return order
        return None

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is a request; False when none has come for so long. Notes are obeyed meanwhile."""
        until = time.monotonic() + timeout_s
        while True:
            self._fetch_all()  # before each wait: ZeroMQ says once that something has come
            left_s = min(until - time.monotonic(), _LONGEST_S)
            if self._inbox or left_s <= 0:
                return bool(self._inbox)
            if self._epoll is not None:
                self._epoll.poll(left_s)
            else:
                poll = select.poll()
                poll.register(self._link, select.POLLIN)
                poll.poll(left_s * 1000)

    def hear(self) -> bool:
        """Take what is there, or wait for something; True when the router went away and another one is there."""
        if self._zmq is None:
            return self._receive(0) is None
        # One of each: a lane that is never empty must not hide what comes on the other.
        received = self._receive(_DONTWAIT)
        if received is None:
            return True
        packet = self._zmq.receive()
        if packet is not None:
            self._take(bytearray(packet), self._reply_zmq)
        elif not received and self._epoll is not None:
            self._epoll.poll()
        return False

    def _fetch_all(self) -> None:
        # In this order: withdrawals come on the connection, whatever lane their request came on.
        while self._zmq is not None and len(self._inbox) < _FETCHED and (packet := self._zmq.receive()) is not None:
            self._take(bytearray(packet), self._reply_zmq)
        while len(self._inbox) < _FETCHED and self._receive(_DONTWAIT):
            pass

    def tell_turn(self, word: Word, epoch: int) -> None:
        """The turn of that epoch is over: YIELD where its batch is not, END where it is.

        With another lane the answer may be there before an END, which says nothing then.
        """
        if word == Word.YIELD or self._zmq is None:
            self._reply(encode_note(Note(word, 0, epoch)))

    def _receive(self, flags: int) -> bool | None:
        """Take one packet off the connection. False when there was none, None when the router went away."""
        try:
            size, ancillary, _, _ = self._link.recvmsg_into([self._buffer], _FD_SPACE, flags | _CLOEXEC)
        except BlockingIOError:
            return False
        except OSError:
            size, ancillary = 0, []
        if not size:
            self._reconnect()
            return None
        if size == NOTE_BYTES or ancillary:
            self._obey(decode_note(bytes(self._view[:size])), ancillary)
        else:
            # A copy of its own: what the model makes of its inputs may outlive the next packet.
            self._take(bytearray(self._view[:size]), self._reply)
        return True

    def _take(self, packet: bytearray, reply: Callable[[bytes], None]) -> None:
        try:
            fields = wire.read_fields(packet)
        except BedsitError:
            return  # the router sends no such thing
        if fields[2] != _CANCEL:
            self._inbox.append(Order(packet, fields, reply))
        elif any(order.fields[4] == fields[4] for order in (*self._inbox, *self._batch)):
            self._cancelled.add(fields[4])

    def _obey(self, note: Note, ancillary: list[tuple[int, int, bytes]]) -> None:
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        try:
            if note.word == Word.GIVE and fds:
                with contextlib.suppress(OSError, ValueError):  # no memory for it: its requests will say so
                    self._arenas.give(note.number, fds[0], note.size)
                    self._reply(encode_note(Note(Word.MAPPED, note.number)))
            elif note.word == Word.FORGET:
                self._arenas.forget(note.number)
            elif note.word == Word.MEET:
                self._meet()
        finally:
            for fd in fds:
                os.close(fd)

    def _reply(self, packet: bytes) -> None:
        """Answer over the connection; blocks while the router reads nothing. A router that is gone wants no answer."""
        try:
            self._link.send(packet, socket.MSG_NOSIGNAL)
        except OSError:
            return  # the next receive sees the end

    def _reply_zmq(self, packet: bytes) -> None:
        if self._zmq is not None:
            while not self._zmq.send(packet):
                self._zmq.wait_for_room(1.0)

    def _meet(self) -> None:
        """Connect to the ZeroMQ lane; from now on two things can wake this process."""
        if self._zmq is None:
            self._context = self._context or zmq.Context()
            lane = self._zmq = ZmqChannel(self._context, f"{self._run_dir}/router.sock")
            epoll = self._epoll = select.epoll()
            epoll.register(self._link.fileno(), select.EPOLLIN)
            epoll.register(lane.fileno(), select.EPOLLIN | select.EPOLLET)
            self._reply_zmq(wire.pack_packet(Kind.READY, 0))

    def _connect(self) -> None:
        while True:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            try:
                link.connect(f"{self._run_dir}/fd.sock")
                link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
                link.send(wire.pack_packet(Kind.READY, 0), socket.MSG_NOSIGNAL)
            except OSError:
                link.close()
                time.sleep(_RETRY_S)
                continue
            self._link = link
            return

    def _reconnect(self) -> None:
        self._link.close()
        if self._zmq is not None and self._epoll is not None:
            self._epoll.close()
            self._zmq.close()
            self._zmq = self._epoll = None
        self._inbox.clear()
        self._cancelled.clear()
        self._arenas.clear()
        self._connect()
