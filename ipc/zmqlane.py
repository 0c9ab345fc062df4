"""The ZeroMQ lane, and its sockets: a DEALER for whoever has one peer, a ROUTER for a tenant's clients."""

import os
import select
import socket as sockets
import sys
import threading
from io import FileIO
from pathlib import Path
from typing import Final

import zmq

from bedsit.ipc.seqpacket import refuse_descriptors
from bedsit.ipc.wire import MAX_PACKET

# As plain ints: looking them up as enum members costs more than the call.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_RCVMORE: Final = int(zmq.RCVMORE)
_PACKETS_HELD: Final = 256
_BACKLOG: Final = 100
_RECONNECT_MS: Final = 10
_RECONNECT_MAX_MS: Final = 200
_MOMENT_S: Final = 0.002
_RING: Final = (1).to_bytes(8, sys.byteorder)


class ZmqChannel:
    """A DEALER: the client's end, the worker's end, and the router's end towards one worker."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", path: str, *, token: bytes = b"", bind: bool = False
    ) -> None:
        self.ended = False
        self._socket = _make_socket(context, zmq.DEALER)
        self._bound = path if bind else ""
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        if token:
            self._socket.setsockopt(zmq.IDENTITY, token)
        try:
            if bind:
                _bind(self._socket, path)
            else:
                self._socket.connect(f"ipc://{path}")
        except (zmq.ZMQError, OSError) as e:
            self.close()
            raise OSError(e.errno, e.strerror, path) from None

    def fileno(self) -> int:
        """The descriptor that becomes readable when packets may be waiting."""
        return int(self._socket.getsockopt(zmq.FD))

    def send(self, packet: bytes) -> bool:
        """Hand the packet over; False when the peer takes nothing right now."""
        try:
            self._socket.send(packet, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def has_packets(self) -> bool:
        """Whether there is something to be received."""
        return bool(int(self._socket.get(_EVENTS)) & _POLLIN)

    def receive(self) -> bytes | None:
        """The next packet, or None. Parts of one message count as packets of their own."""
        # Asking first costs a third of what an exception for "nothing there" costs.
        if not int(self._socket.get(_EVENTS)) & _POLLIN:
            return None
        return self._socket.recv(zmq.DONTWAIT)

    def wait(self, timeout_s: float) -> bytes | None:
        """The next packet, or None after *timeout_s*; blocks."""
        packet = self.receive()
        if packet is None and self._poller.poll(max(0, int(timeout_s * 1000 + 0.999))):
            packet = self.receive()
        return packet

    def wait_for_room(self, timeout_s: float) -> None:
        """Block until ZeroMQ takes packets again, or something is there to be received."""
        self._poller.modify(self._socket, zmq.POLLIN | zmq.POLLOUT)
        try:
            self._poller.poll(max(0, int(timeout_s * 1000 + 0.999)))
        finally:
            self._poller.modify(self._socket, zmq.POLLIN)

    def close(self) -> None:
        """Drop what is unsent and close."""
        self._socket.close(0)
        if self._bound:
            Path(self._bound).unlink(missing_ok=True)


class SharedChannel:
    """A `ZmqChannel` for any number of threads, one of which at a time may be in ``wait``.

    A ZeroMQ socket is one thread's at a time (zmq_socket(3)): each look at it is under a lock, and waiting is for its
    descriptor, without the lock. Whoever sends may swallow the edge that another thread waits for, and then rings.
    """

    def __init__(self, channel: ZmqChannel) -> None:
        self.ended = False
        self._channel = channel
        self._fd = channel.fileno()
        self._lock = threading.Lock()
        self._bell = FileIO(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+")
        self._readable = select.poll()
        for fd in (self._fd, self._bell.fileno()):
            self._readable.register(fd, select.POLLIN)

    def fileno(self) -> int:
        """The descriptor that becomes readable when packets may be waiting."""
        return self._fd

    def send(self, packet: bytes) -> bool:
        """Hand the packet over; False when the peer takes nothing right now, or this end is closed."""
        with self._lock:
            if self.ended:
                return False
            sent = self._channel.send(packet)
            if self._channel.has_packets():
                self._bell.write(_RING)
            return sent

    def receive(self) -> bytes | None:
        """The next packet, or None."""
        with self._lock:
            return None if self.ended else self._channel.receive()

    def wait(self, timeout_s: float) -> bytes | None:
        """The next packet, or None after *timeout_s* at the latest; blocks."""
        packet = self.receive()
        if packet is None and self._readable.poll(max(0.0, timeout_s) * 1e3):
            self._bell.read(len(_RING))  # None where nobody rang
            packet = self.receive()
        return packet

    def wait_for_room(self, timeout_s: float) -> None:
        """Block for a moment: another thread may have seen already that there is room, and nothing says so twice."""
        moment = select.poll()
        moment.register(self._fd, select.POLLIN)
        moment.poll(min(max(0.0, timeout_s), _MOMENT_S) * 1e3)

    def close(self) -> None:
        """Drop what is unsent and close. Nobody may be in ``wait``."""
        with self._lock:
            if not self.ended:
                self.ended = True
                self._channel.close()
                self._bell.close()


class ZmqPort:
    """A ROUTER, bound: the router's end towards the clients of one tenant. Raises OSError where that is impossible."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: str) -> None:
        self._socket = _make_socket(context, zmq.ROUTER)
        self._in_surplus = False  # the last part that was read has others behind it that nobody wants
        # Without this a packet for a client that is gone is dropped unseen; with it the sender learns of it.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            _bind(self._socket, path)
        except (zmq.ZMQError, OSError) as e:
            self.close()
            raise OSError(e.errno, e.strerror, path) from None

    def fileno(self) -> int:
        """The descriptor that becomes readable when packets may be waiting."""
        return int(self._socket.getsockopt(zmq.FD))

    def send(self, peer: bytes, packet: bytes) -> bool:
        """Hand the packet over; False when that peer is gone or takes nothing right now."""
        try:
            self._socket.send_multipart((peer, packet), zmq.DONTWAIT)
        except zmq.ZMQError:  # EHOSTUNREACH: gone. EAGAIN: reads nothing.
            return False
        return True

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next packet with its sender's token, or None. What is of another form is dropped, and is nobody's.

        Each surplus part is given as an empty packet without a token: a message of millions of them, or a flood of
        such messages, is read at the pace of whoever counts the calls.
        """
        socket = self._socket
        if not int(socket.get(_EVENTS)) & _POLLIN:
            return None
        token = socket.recv(zmq.DONTWAIT)
        if self._in_surplus or not socket.get(_RCVMORE):
            self._in_surplus = bool(socket.get(_RCVMORE))
            return b"", b""
        packet = socket.recv(zmq.DONTWAIT)
        self._in_surplus = bool(socket.get(_RCVMORE))
        return (b"", b"") if self._in_surplus else (token, packet)

    def close(self) -> None:
        """Drop what is unsent and close."""
        self._socket.close(0)


def _bind(socket: "zmq.Socket[bytes]", path: str) -> None:
    """Listen at *path*, whatever was left there. ZeroMQ takes over a listener of ours, which takes no descriptors."""
    Path(path).unlink(missing_ok=True)
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC | sockets.SOCK_NONBLOCK)
    try:
        listener.bind(path)
        refuse_descriptors(listener)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    socket.setsockopt(zmq.USE_FD, listener.detach())
    socket.bind(f"ipc://{path}")


def _make_socket(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_PACKET)
    # Both bound what a peer can make this process hold: 256 packets of 64 KiB.
    socket.setsockopt(zmq.RCVHWM, _PACKETS_HELD)
    socket.setsockopt(zmq.SNDHWM, _PACKETS_HELD)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    return socket
