"""The helper: answers the daemon's questions on fd 0, one at a time, until the daemon is gone.

It says which call comes next before it makes it, so whoever listens knows which one hangs.
"""

import os
import select
import signal
import socket
import sys
import threading
from typing import Any, Final

from bedsit.ipc.seqpacket import recv_packet, send_packet
from bedsit.sandbox.jail import libc
from bedsit.supervisor.devices.reports import Refusal, to_wire

_NO_BINDING: Final = Refusal(-1, "import pynvml", "no module named pynvml")


def main() -> int:
    """Serve until the other end is closed."""
    sock = socket.socket(fileno=0)
    leave_with(sock)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the daemon, which closes its end then
    try:
        from bedsit.supervisor.devices.nvml.answers import Answers  # noqa: PLC0415 - a box need not have the binding
    except ModuleNotFoundError:
        answers = None
    else:
        answers = Answers(lambda message: send_packet(sock, message), lambda message: offer(sock, message))
    while True:
        question, _ = recv_packet(sock)
        if question is None:
            os._exit(0)  # as below
        answer: dict[str, Any] = {"refused": to_wire(_NO_BINDING)} if answers is None else answers.give(question)
        send_packet(sock, answer)


def offer(sock: socket.socket, message: dict[str, Any]) -> bool:
    """Send where there is room for it."""
    try:
        send_packet(sock, message, flags=socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


def leave_with(sock: socket.socket) -> None:
    """Leave with the daemon, also in a call that does not return, when nobody reads that its end is closed.

    The signal is for a child that was stopped; a unit of systemd's has systemd for a parent.
    """
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_leave_on_hangup, args=(sock.fileno(),), daemon=True).start()


def _leave_on_hangup(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    os._exit(0)  # not sys.exit, which waits for threads that wait in the driver


if __name__ == "__main__":
    sys.exit(main())
