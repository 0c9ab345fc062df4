"""The helper: answers the daemon's questions on fd 0, one at a time, until the daemon is gone.

It says which call comes next before it makes it, so whoever listens knows which one hangs.
"""

import os
import signal
import socket
import struct
import sys
from typing import Any, Final

from bedsit.ipc.seqpacket import recv_packet, send_packet
from bedsit.sandbox.jail import libc
from bedsit.supervisor.devices.reports import Refusal, to_wire

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
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
            os._exit(0)  # not sys.exit, which waits for the thread that waits in the driver
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
    """Die with the daemon, also in the middle of a call, when nobody reads that its end is closed."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    made_by, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if os.getppid() != made_by:  # it died before the signal was asked for
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
