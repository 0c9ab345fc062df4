"""Length-prefixed msgpack over a STREAM socket: how the admin API and the daemon-router link are framed.

A frame is a 4-byte little-endian length and that many bytes of msgpack. Lengths over the limit, extension types and
anything that is not msgpack are ``wire.malformed``; the connection is then of no further use.
"""

import socket
import struct
from typing import Any, Final

import msgpack

from bedsit.ipc.errors import error

MAX_FRAME: Final = 2 << 20
MAX_ITEMS: Final = 1 << 16
_LENGTH: Final = struct.Struct("<I")


def encode_frame(message: object, limit: int = MAX_FRAME) -> bytes:
    """One frame holding *message*. Raises ``wire.malformed`` when it is over *limit* bytes."""
    body: bytes = msgpack.packb(message)
    if len(body) > limit:
        raise error("wire.malformed", f"a message of {len(body)} bytes is over the limit of {limit}")
    return _LENGTH.pack(len(body)) + body


def decode_body(body: bytes | bytearray | memoryview, max_items: int = MAX_ITEMS) -> Any:
    """The msgpack value in *body*: no extension types, map keys are text or bytes, nothing longer than the body.

    No array may claim more than *max_items* elements. msgpack makes room for what an array claims before it sees one
    element, at each of up to 1024 levels: 5 KiB of lies cost 100 ms. So whoever listens to strangers says how few.
    """
    try:
        return msgpack.unpackb(
            body,
            strict_map_key=True,
            max_ext_len=0,
            max_array_len=min(max_items, len(body)),
            ext_hook=_refuse_extension,
        )
    except Exception as e:  # noqa: BLE001 - ValueError, its own classes, UnicodeDecodeError and RecursionError alike
        raise error("wire.malformed", f"not a message: {type(e).__name__}") from None


def _refuse_extension(code: int, data: bytes) -> Any:
    # Only those without any data get here: max_ext_len stops the others.
    raise ValueError(f"extension type {code} of {len(data)} bytes")


class FrameReader:
    """Collects bytes as they come and gives back whole messages; keeps at most one frame and one read."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that *data* completes, in order."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > self._limit:
                raise error("wire.malformed", f"a frame of {length} bytes is over the limit of {self._limit}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(decode_body(bytes(self._buffer[_LENGTH.size : end])))
            del self._buffer[:end]
        return messages


def send_frame(sock: socket.socket, message: object) -> None:
    """Send one frame; blocks."""
    sock.sendall(encode_frame(message))


def recv_frame(sock: socket.socket) -> Any:
    """The next message, or None at end of stream; blocks. A stream that ends inside a frame is ``wire.malformed``."""
    head = _recv_exactly(sock, _LENGTH.size, at_start=True)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME:
        raise error("wire.malformed", f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
    body = _recv_exactly(sock, length, at_start=False)
    return decode_body(body or b"")


def _recv_exactly(sock: socket.socket, count: int, *, at_start: bool) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            if at_start and not data:
                return None
            raise error("wire.malformed", "the peer closed the connection in the middle of a message")
        data += piece
    return bytes(data)
