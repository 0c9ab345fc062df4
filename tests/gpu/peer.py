"""A process of a check's own: it does what it is told by words over a socket, and can be killed like any tenant."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.gpu.report import explain

_FOLDER: Final = str(Path(__file__).parent)
#: Of one message. Peers say figures, not samples, so that this is plenty.
_ROOM: Final = 1 << 17
_WAIT_S: Final = 20.0
Handlers = Mapping[str, Callable[..., Mapping[str, Any] | None]]


class PeerError(Exception):
    """What the peer raised, in its words; or it is gone."""


class Peer:
    """A new process that runs ``module:function`` of tests.gpu with its end of the socket."""

    def __init__(self, program: str, *, wait_s: float = _WAIT_S) -> None:
        self.program = program
        self._wait_s = wait_s
        #: Of the words: the last one said, and the last one whose answer came or is not wanted any more.
        self._said = self._heard = 0
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, _FOLDER, "peer", program, str(theirs.fileno())]
            # Its stdout is the check's stderr: libraries may print, and the check's stdout is for rows.
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=sys.stderr
            )

    @property
    def pid(self) -> int:
        """The process'."""
        return self.process.pid

    def ask(self, word: str, /, *descriptors: int, wait_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Tell and hear; an answer that comes too late is nobody's."""
        self.tell(word, *descriptors, **arguments)
        try:
            return self.hear(wait_s)
        except TimeoutError:
            self._heard = self._said
            raise

    def tell(self, word: str, /, *descriptors: int, **arguments: Any) -> None:
        """Say a word with its arguments; descriptors arrive as copies. Raises PeerError when it is gone."""
        self._said += 1
        message = json.dumps([self._said, word, arguments]).encode()
        try:
            socket.send_fds(self.socket, [message], list(descriptors))
        except (BrokenPipeError, ConnectionResetError) as e:
            raise PeerError(self._say_gone()) from e

    def hear(self, wait_s: float | None = None) -> dict[str, Any]:
        """The answer; its *descriptors* are ours to close. Raises PeerError, or TimeoutError after *wait_s*."""
        limit = self._wait_s if wait_s is None else wait_s
        deadline = time.monotonic() + limit
        while True:
            if not select.select([self.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{self.program} (pid {self.pid}) did not answer within {limit:g} s")
            try:
                message, descriptors, _, _ = socket.recv_fds(self.socket, _ROOM, 4)
            except ConnectionResetError:
                message, descriptors = b"", []
            if not message:
                raise PeerError(self._say_gone())
            number, answer = json.loads(message)
            if number > self._heard:
                break
            for descriptor in descriptors:
                os.close(descriptor)
        self._heard = number
        if "error" in answer:
            raise PeerError(answer["error"])
        return {**answer, "descriptors": descriptors}

    def recall(self) -> dict[str, Any]:
        """End what it does until the next word; its answer to that."""
        self.tell("rest")
        answer = self.hear()
        self.hear()
        return answer

    def kill(self) -> None:
        """End it as a tenant is ended; does not wait."""
        self.process.kill()

    def stop(self) -> None:
        """Freeze it; `go` thaws it."""
        self.process.send_signal(signal.SIGSTOP)

    def go(self) -> None:
        """Undo `stop`."""
        self.process.send_signal(signal.SIGCONT)

    def leave(self, wait_s: float = 5.0) -> int | None:
        """Ask it to end by itself, kill it if it does not; its exit status, None when not even that helped."""
        self.socket.close()
        for _ in range(2):
            try:
                return self.process.wait(wait_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.leave()

    def _say_gone(self) -> str:
        try:
            status = self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            return f"{self.program} closed its socket"
        return f"{self.program} ended with {status}"


@contextmanager
def busy(peers: Sequence[Peer], word: str, **arguments: Any) -> Iterator[list[dict[str, Any]]]:
    """All of them at *word*, which ends with the next one, until the block ends; then their answers are in the list."""
    answers: list[dict[str, Any]] = []
    for peer in peers:
        peer.tell(word, **arguments)
    try:
        yield answers
    finally:
        answers += [peer.recall() for peer in peers]


def serve(sock: socket.socket, handlers: Handlers) -> None:
    """Answer words until the other side leaves. What a handler raises is the answer *error*."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(sock, _ROOM, 4)
        if not message:
            return
        number, word, arguments = json.loads(message)
        if descriptors:
            arguments["descriptors"] = descriptors
        try:
            answer = dict(handlers[word](**arguments) or {})
        except Exception as e:  # noqa: BLE001 - the check reports it
            answer = {"error": explain(e), "code": getattr(e, "code", None)}
        out = answer.pop("send", [])
        socket.send_fds(sock, [json.dumps([number, answer], default=str).encode()], out)
        for descriptor in out:
            os.close(descriptor)


def is_called(sock: socket.socket) -> bool:
    """Whether the next word is there, or the other side has left: time for a loop to end."""
    return bool(select.select([sock], [], [], 0)[0])


def wait_until_at(at: float) -> None:
    """Until the machine's monotonic clock, which all processes share, says *at*."""
    while (left := at - time.monotonic()) > 0:
        time.sleep(left)
