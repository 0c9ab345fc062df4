"""Waiting for the kernel inside the event loop: packets, ends of processes, empty cgroups."""

import asyncio
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.seqpacket import recv_packet, send_packet
from bedsit.sandbox.cgroup import CgroupBackend

_BUDGET: Final = 64
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class PacketLink:
    """A client connection over SEQPACKET: *heard* gets every packet, *ended* is called once when the peer is gone.

    Never waits, not even to connect: a listener whose queue is full is a BlockingIOError. A socket that is connected
    is taken over.
    """

    def __init__(
        self, peer: str | socket.socket, heard: Callable[[dict[str, Any]], None], ended: Callable[[], None]
    ) -> None:
        self._socket = connect(peer) if isinstance(peer, str) else peer
        self._heard = heard
        self._ended = ended
        asyncio.get_running_loop().add_reader(self._socket, self.drain)

    def watch_peer(self, ended: Callable[[], None]) -> "EndWatch":
        """Watch the process that listened, as the kernel names it. Raises OSError when that has ended."""
        peer = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        watch = EndWatch(_CREDENTIALS.unpack(peer)[0], ended)
        try:
            with suppress(BlockingIOError):
                if not self._socket.recv(1, socket.MSG_PEEK):  # it may have ended before, and its number be another's
                    raise ProcessLookupError(3, "the peer has ended")
        except BaseException:
            watch.close()
            raise
        return watch

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        """Send one packet now. Raises ``internal`` when the peer does not take it: it is ours and reads at once."""
        try:
            send_packet(self._socket, message, fds or (), socket.MSG_DONTWAIT)
        except OSError as e:
            raise error("internal", f"a process of the sandbox does not take packets: {e.strerror}") from e

    def drain(self) -> None:
        """Hear what has come, at most a budget's worth a turn."""
        for _ in range(_BUDGET):
            if self._socket.fileno() < 0:  # closed by a handler
                return
            try:
                message, _ = recv_packet(self._socket, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except (OSError, BedsitError):
                message = None
            if message is None:
                self.close()
                self._ended()
                return
            self._heard(message)

    def close(self) -> None:
        """Close; nothing is called any more."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()


def connect(path: str) -> socket.socket:
    """Connected at once, or not: raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


class EndWatch:
    """Calls *ended* once when process *pid* ends, whoever its parent is. Raises ProcessLookupError."""

    def __init__(self, pid: int, ended: Callable[[], None]) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._ended = ended
        asyncio.get_running_loop().add_reader(self._fd, self._ring)

    def kill(self) -> None:
        """SIGKILL to that process and no other, if it runs and is watched."""
        if self._fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Watch no more."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ring(self) -> None:
        self.close()
        self._ended()


async def wait_empty(backend: CgroupBackend, slot: str, timeout_s: float) -> bool:
    """Wait until nothing runs in the slot's cgroup. False when that takes longer than *timeout_s*."""
    try:
        fd = backend.populated_fd(slot)
    except (OSError, BedsitError):  # the group is gone, and with it whatever ran there
        return True
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    # cgroup.events is always readable and says "changed" by POLLPRI, which asyncio does not know; an epoll set that
    # waits for POLLPRI alone is itself readable at the right moment.
    with select.epoll() as priority:
        priority.register(fd, select.EPOLLPRI)
        loop.add_reader(priority.fileno(), changed.set)
        try:
            async with asyncio.timeout(timeout_s):
                while backend.populated(slot):
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return not backend.populated(slot)
        finally:
            loop.remove_reader(priority.fileno())
            os.close(fd)
    return True
