"""Waiting for the kernel inside the event loop: packets, ends of processes, empty cgroups."""

import asyncio
import os
import select
import socket
from collections.abc import Callable
from typing import Any, Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.seqpacket import recv_packet, send_packet
from bedsit.sandbox.cgroup import CgroupBackend

_BUDGET: Final = 64


class PacketLink:
    """A client connection over SEQPACKET: *heard* gets every packet, *ended* is called once when the peer is gone."""

    def __init__(self, path: str, heard: Callable[[dict[str, Any]], None], ended: Callable[[], None]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._heard = heard
        self._ended = ended
        try:
            self._socket.connect(path)
            self._socket.setblocking(False)  # after connect: a listener with a full queue may make us wait a moment
        except OSError:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket, self.drain)

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


class EndWatch:
    """Calls *ended* once when process *pid* ends, whoever its parent is. Raises ProcessLookupError."""

    def __init__(self, pid: int, ended: Callable[[], None]) -> None:
        self._fd = os.pidfd_open(pid)
        self._ended = ended
        asyncio.get_running_loop().add_reader(self._fd, self._ring)

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
