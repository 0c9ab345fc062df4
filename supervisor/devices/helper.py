"""The helper as the daemon has it: asked, given so long for each call of NVML, and ended.

It is a child of the daemon, or a unit that systemd starts for a connection (bedsit-nvml.socket): the daemon's own unit
has no device files, and its children have none either. It leaves when our end hangs up, also out of a call that does
not return; a child is killed as well.

Guarantees: never blocks the loop; at most one helper is alive or dying. One that sits in the kernel and cannot be
ended is waited for, not doubled.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.devices.reports import Happening, Refusal, read_report
from bedsit.supervisor.watch import EndWatch, PacketLink, connect

#: Where the library is, if at no usual place, is the operator's to say; nothing else is the helper's business.
_INHERITED: Final = ("LD_LIBRARY_PATH",)
_END_S: Final = 5.0
_START: Final = "its start"
#: The questions that change something.
Cut = Literal["create", "finish", "destroy"]


class Refused(Exception):
    """NVML answered with an error."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class Hung(Exception):
    """A call did not come back in time; the helper was killed."""

    def __init__(self, call: str, after_s: float) -> None:
        super().__init__(call)
        self.call = call
        self.after_s = after_s


class Ended(Exception):
    """The helper is gone, or was sent away because it said what nobody can read."""

    def __init__(self, call: str, cause: str) -> None:
        super().__init__(cause)
        self.call = call
        self.cause = cause


@dataclass(frozen=True)
class Patience:
    """How long the driver may take: for a call, to start, when it may have to wake up eight cards, and for a cut.

    A call that cuts and is ended leaves a half to clear up, so it has more time than one that reads.
    """

    call_s: float = 10.0
    start_s: float = 60.0
    cut_s: float = 30.0


class Helper:
    """One running helper: a child, or an instance of the unit that listens on *unit*.

    *heard* gets what the driver reports by itself. Raises OSError when it cannot be started.
    """

    def __init__(self, heard: Callable[[Happening], None], patience: Patience, unit: Path | None = None) -> None:
        self._heard = heard
        self._patience = patience
        self._is_new = True
        self._call = self._cause = ""
        self._is_closed = False
        self._moved = asyncio.Event()
        self._over = asyncio.Event()
        self._answer: dict[str, Any] | None = None
        self._child: EndWatch | None = None
        if unit is not None:
            self._socket = connect(str(unit))
        else:
            self._socket, pid = _spawn()
            self._child = EndWatch(pid, self._mourn)
        self._link = PacketLink(self._socket, self._hear, self._lose)

    @property
    def pid(self) -> int | None:
        """Its process, where that is our child."""
        return self._child.pid if self._child is not None else None

    @property
    def is_over(self) -> bool:
        """Whether its process has ended."""
        return self._over.is_set()

    @property
    def is_stuck(self) -> bool:
        """Whether it was killed and lives: it sits in the kernel, and nothing but the driver can let it go."""
        return self._is_closed and not self._over.is_set()

    async def ask(self, **question: Any) -> Any:
        """The answer to *question*, however many calls it takes, as long as each comes back in time.

        Raises Refused, Hung, Ended. One question at a time.
        """
        self._answer, self._call = None, ""
        usual_s = self._patience.cut_s if question.get("ask") in get_args(Cut) else self._patience.call_s
        within_s = self._patience.start_s if self._is_new else usual_s
        try:
            self._link.send(question)
        except (BedsitError, OSError):
            self._fail("it does not listen")
        while self._answer is None and not self._cause:
            self._moved.clear()
            try:
                async with asyncio.timeout(within_s):
                    await self._moved.wait()
            except TimeoutError:
                await self.close()
                raise Hung(self._call or _START, within_s) from None
        if self._answer is None:
            await self.close()
            raise Ended(self._call or _START, self._cause)
        self._is_new = False
        if "refused" in self._answer:
            raise Refused(read_report(self._answer["refused"], Refusal))
        return self._answer.get("answer")

    async def close(self) -> None:
        """End it, and wait for that a little; then it is over or stuck."""
        self._is_closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        if self._child is not None:
            self._child.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._over.wait()
        if self._over.is_set():
            self._link.close()

    def _hear(self, message: dict[str, Any]) -> None:
        if "event" in message:
            try:
                self._heard(read_report(message["event"], Happening))
            except BedsitError as e:
                self._fail(str(e))
            return
        if "calling" in message:
            self._call = str(message["calling"])
        else:
            self._answer = message
        self._moved.set()

    def _lose(self) -> None:
        """Its end is closed: a unit is over then, a child about to be."""
        if self._child is not None:
            self._child.kill()
        else:
            self._over.set()
            self._fail("it left; see: journalctl -u 'bedsit-nvml@*'")

    def _mourn(self) -> None:
        self._link.drain()  # what it said last
        self._link.close()
        _, status = os.waitpid(self.pid or 0, 0)
        code = os.waitstatus_to_exitcode(status)
        self._over.set()
        self._fail(f"signal {-code}" if code < 0 else f"exit status {code}")

    def _fail(self, cause: str) -> None:
        self._cause = self._cause or cause
        self._moved.set()


def _spawn() -> tuple[socket.socket, int]:
    """A child with the other end of a socket as its standard input."""
    environment: Mapping[str, str] = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-m", "bedsit.supervisor.devices.nvml"],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            ],
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP),
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return ours, pid
