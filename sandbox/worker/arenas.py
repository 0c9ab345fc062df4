"""The arenas that this worker has mapped, and the socket they come over.

The router is believed; the clients behind the arenas are not: bytes in an arena may change at any time.
"""

import mmap
import os
import socket
import time
from typing import Final

from bedsit.ipc.seqpacket import recv_bytes, send_bytes
from bedsit.ipc.slot import ArenaMessage, ArenaWord, decode_arena, encode_arena

_RETRY_S: Final = 0.02


class ArenaTable:
    """Maps what the router gives, by number. A mapping lives until it is forgotten and nothing refers to it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._maps: dict[int, mmap.mmap] = {}
        self._socket: socket.socket | None = None

    def connect(self) -> socket.socket:
        """Connect to the router, waiting for it for as long as it takes. A new router has new arenas."""
        self._maps.clear()
        while True:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            try:
                link.connect(self._path)
            except OSError:
                link.close()
                time.sleep(_RETRY_S)
                continue
            link.setblocking(False)
            self._socket = link
            return link

    def receive(self) -> bool:
        """Take one message from the router; False when the router is gone."""
        if self._socket is None:
            return False
        try:
            data, fds = recv_bytes(self._socket, max_fds=1)
        except BlockingIOError:
            return True
        except OSError:
            data, fds = None, []
        if data is None:
            self._socket.close()
            self._socket = None
            return False
        message = decode_arena(data)
        try:
            if message.word == ArenaWord.GIVE and fds:
                self._maps[message.number] = mmap.mmap(fds[0], message.size)
                send_bytes(self._socket, encode_arena(ArenaMessage(ArenaWord.MAPPED, message.number)))
            elif message.word == ArenaWord.FORGET:
                # Not closed: tensors over it may still be alive; the last of them unmaps it.
                self._maps.pop(message.number, None)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def find(self, number: int) -> mmap.mmap | None:
        """The arena of that number, or None."""
        return self._maps.get(number)
