"""The fast lane: packets on a connected SEQPACKET socket. No thread, no copy but the kernel's, and the end is seen.

A packet that was cut off is refused by its length: one byte more than the limit is asked for.
"""

import select
import socket
import struct
from typing import Final

from bedsit.ipc.wire import MAX_PACKET

_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
ROOM: Final = MAX_PACKET + 1
# A blocking receive wakes up so often; a shorter wait is a poll of its own.
_NAP_S: Final = 0.1


class PacketChannel:
    """A `Channel` over *sock*, which it takes over. The socket must have no Python timeout."""

    def __init__(self, sock: socket.socket) -> None:
        self.ended = False
        self._socket = sock
        self._send, self._recv = sock.send, sock.recv
        # poll, not select: a client may have more descriptors than select can name.
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        nap = struct.pack("@ll", 0, int(_NAP_S * 1e6))
        # The kernel's own timeout: with settimeout() Python would poll before each receive.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, nap)

    def fileno(self) -> int:
        """The connection."""
        return self._socket.fileno()

    def send(self, packet: bytes) -> bool:
        """Hand the packet to the kernel; False when its room for this peer is full, or the peer is gone."""
        try:
            self._send(packet, _SEND)
        except BlockingIOError:
            return False
        except OSError:
            self.ended = True
            return False
        return True

    def receive(self) -> bytes | None:
        """The next packet, or None."""
        return self._take(_DONTWAIT)

    def wait(self, timeout_s: float) -> bytes | None:
        """The next packet, or None after *timeout_s* or a tenth of a second, or when the peer is gone; blocks."""
        if timeout_s >= _NAP_S:
            return self._take(0)
        if not self._readable.poll(max(0.0, timeout_s) * 1e3):
            return None
        return self._take(_DONTWAIT)

    def wait_for_room(self, timeout_s: float) -> None:
        """Block until the kernel takes packets again, or something is there to be received."""
        ready = select.poll()  # one for each: several threads may wait here, and a poll object takes one at a time
        try:
            ready.register(self._socket, select.POLLIN | select.POLLOUT)
        except ValueError:  # closed meanwhile
            return
        ready.poll(max(0.0, timeout_s) * 1e3)

    def close(self) -> None:
        """Hang up."""
        self.ended = True
        self._socket.close()

    def _take(self, flags: int) -> bytes | None:
        try:
            packet = self._recv(ROOM, flags)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        if not packet:
            self.ended = True
            return None
        return packet
