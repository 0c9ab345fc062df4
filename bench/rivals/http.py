"""The least HTTP/1.1 client that is honest: one connection that is kept, a bare socket, one buffer for all answers."""

import socket
import struct
from collections.abc import Mapping
from typing import Final

import numpy as np

from bench.rivals.models import Array

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 30
_END: Final = b"\r\n\r\n"
_FIRST_BYTES: Final = 64 << 10
#: Up to here head and body are copied together and leave in one call.
_SMALL_BYTES: Final = 32 << 10
#: What one recv may bring when an answer's length is not known in advance.
_PIECE_BYTES: Final = 1 << 20


class Connection:
    """A kept connection that posts to one path. *headers* go with every request."""

    def __init__(self, port: int, path: str, headers: Mapping[str, str] | None = None) -> None:
        more = "".join(f"{key}: {value}\r\n" for key, value in (headers or {}).items())
        self._head = f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n{more}Content-Length: "
        self._sock = socket.create_connection((HOST, port), TIMEOUT_S)
        # The kernel's own timeouts: with Python's there would be a poll before every read.
        self._sock.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", TIMEOUT_S, 0))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(_FIRST_BYTES)
        self.head = b""

    def post(self, *parts: bytes | memoryview, headers: str = "") -> memoryview:
        """Send *parts* as one body and give the answer's, which the next call overwrites. *headers* end their lines.

        Raises RuntimeError when the answer is no success, OSError when there is none.
        """
        length = sum(len(part) for part in parts)
        head = f"{self._head}{length}\r\n{headers}\r\n".encode()
        if length < _SMALL_BYTES:
            self._sock.sendall(b"".join((head, *parts)))
        else:
            self._sock.sendall(b"".join((head, *parts[:-1])), socket.MSG_MORE)
            self._sock.sendall(parts[-1])
        answer = self._read_answer()
        status = int(self.head[9:12])
        if not 200 <= status < 300:
            raise RuntimeError(f"HTTP {status}: {bytes(answer[:300]).decode(errors='replace')}")
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def _read_answer(self) -> memoryview:
        have = 0
        while (end := self._buffer.find(_END, 0, have)) < 0:
            if have == len(self._buffer):
                raise RuntimeError(f"an answer's head of more than {have} bytes")
            have += self._receive(have)
        self.head = bytes(self._buffer[:end]).lower()
        start = end + len(_END)
        length = self._find("content-length")
        if length is not None:
            return self._read_until(start, have, start + int(length))
        if self._find("transfer-encoding") == "chunked":
            return self._read_chunks(start, have)
        raise RuntimeError("an answer without its length")

    def _find(self, name: str) -> str | None:
        """A header's value in the last answer's head."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.decode() == name:
                return value.strip().decode()
        return None

    def _read_until(self, start: int, have: int, end: int) -> memoryview:
        self._grow(end, have)
        while have < end:
            have += self._receive(have, end)
        return memoryview(self._buffer)[start:end]

    def _read_chunks(self, at: int, have: int) -> memoryview:
        """Move each chunk to where the one before it ends."""
        start = end = at
        while True:
            line_end, have = self._read_line(at, have)
            size = int(self._buffer[at:line_end].partition(b";")[0], 16)
            at = line_end + 2
            if size == 0:
                while True:  # trailers, up to an empty line
                    line_end, have = self._read_line(at, have)
                    if line_end == at:
                        return memoryview(self._buffer)[start:end]
                    at = line_end + 2
            self._grow(at + size + 2, have)
            while have < at + size + 2:
                have += self._receive(have)
            self._buffer[end : end + size] = self._buffer[at : at + size]
            end += size
            at += size + 2

    def _read_line(self, at: int, have: int) -> tuple[int, int]:
        """Where the line that begins at *at* ends, and how much has been read by then."""
        while (line_end := self._buffer.find(b"\r\n", at, have)) < 0:
            self._grow(have + _PIECE_BYTES, have)
            have += self._receive(have)
        return line_end, have

    def _grow(self, size: int, have: int) -> None:
        if size > len(self._buffer):
            larger = bytearray(size)
            larger[:have] = self._buffer[:have]
            self._buffer = larger

    def _receive(self, at: int, end: int | None = None) -> int:
        with memoryview(self._buffer) as view, view[at:end] as room:
            count = self._sock.recv_into(room)
        if count == 0:
            raise ConnectionError("the server closed the connection")
        return count


class RawCaller:
    """Calls a model whose requests and answers are its tensors' bytes and nothing else."""

    def __init__(self, port: int, path: str, columns: int) -> None:
        self._connection = Connection(port, path, {"Content-Type": "application/octet-stream"})
        self._columns = columns

    def hold(self, x: Array) -> Array:
        """*x* itself: a socket copies from anywhere."""
        return x

    def __call__(self, x: Array) -> Array:
        """Post the bytes; a view of the answer's."""
        answer = self._connection.post(x.data.cast("B"))
        return np.frombuffer(answer, np.float32).reshape(-1, self._columns if self._columns > 0 else x.shape[1])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
