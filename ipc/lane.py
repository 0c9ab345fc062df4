"""Lanes: how packets get from one process to another, behind two small interfaces.

Nothing outside this file knows which lane a packet came on. ZeroMQ is the lane that is always there; a lane of plain
SEQPACKET packets can stand beside it with the same packets.

A `Channel` has one peer; a `Port` has many and says with each packet which of them sent it. Neither ever blocks: what
cannot be sent now is refused, and what is not there yet is None. ZeroMQ's descriptor is edge-triggered and a *send*
may swallow the edge of a packet that arrived meanwhile, so after sending, call ``receive`` until it gives None.
"""

import socket as sockets
from pathlib import Path
from typing import Final, Protocol

import zmq

from bedsit.ipc.seqpacket import refuse_descriptors
from bedsit.ipc.wire import MAX_PACKET

# As plain ints: looking them up as enum members costs more than the call.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_PACKETS_HELD: Final = 256
_BACKLOG: Final = 100
_RECONNECT_MS: Final = 10
_RECONNECT_MAX_MS: Final = 200


class Channel(Protocol):
    """A lane to one peer."""

    def fileno(self) -> int:
        """The descriptor that becomes readable when packets may be waiting."""

    def send(self, packet: bytes) -> bool:
        """Hand the packet over; False when the peer takes nothing right now."""

    def receive(self) -> bytes | None:
        """The next packet, or None."""

    def wait(self, timeout_s: float) -> bytes | None:
        """The next packet, or None after *timeout_s*; blocks."""

    def close(self) -> None:
        """Drop what is unsent and close."""


class Port(Protocol):
    """A lane's listening end: many peers, each known by the token it came with."""

    def fileno(self) -> int:
        """The descriptor that becomes readable when packets may be waiting."""

    def send(self, peer: bytes, packet: bytes) -> bool:
        """Hand the packet over; False when that peer is gone or takes nothing right now."""

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next packet with its sender's token, or None."""

    def close(self) -> None:
        """Drop what is unsent and close."""


class ZmqChannel:
    """A DEALER: the client's end, the worker's end, and the router's end towards one worker."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", path: str, *, token: bytes = b"", bind: bool = False
    ) -> None:
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

    def close(self) -> None:
        """Drop what is unsent and close."""
        self._socket.close(0)
        if self._bound:
            Path(self._bound).unlink(missing_ok=True)


class ZmqPort:
    """A ROUTER, bound: the router's end towards the clients of one tenant."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: str) -> None:
        self._socket = _make_socket(context, zmq.ROUTER)
        # Without this a packet for a client that is gone is dropped unseen; with it the sender learns of it.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        _bind(self._socket, path)

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
        """The next packet with its sender's token, or None. A message of another form is dropped."""
        socket = self._socket
        while int(socket.get(_EVENTS)) & _POLLIN:
            parts = socket.recv_multipart(zmq.DONTWAIT)
            if len(parts) == 2:  # noqa: PLR2004 - token and packet
                return parts[0], parts[1]
        return None

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
