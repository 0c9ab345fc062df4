"""The client's side of the door: one SEQPACKET connection for the life of a session.

The router learns from it who is calling (the kernel says the uid, the key says the tenant) and hands out the arena.
After that the connection is the session's fast lane, or, beside a ZeroMQ lane, silent. When the client dies the kernel
closes it, and all that the session held is freed.
"""

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

from bedsit.ipc.errors import error, error_from_wire
from bedsit.ipc.lane import LaneName
from bedsit.ipc.manifest import Manifest, decode_manifest
from bedsit.ipc.seqpacket import close_all, recv_packet, send_packet

PROTOCOL: Final = 2
DEFAULT_RUN_DIR: Final = "/run/bedsit"
ANSWER_S: Final = 10.0


class Opened(NamedTuple):
    """What the door answered: *token* names the session on a ZeroMQ lane, *arena_fd* is the caller's to close."""

    tenant: str
    token: bytes
    endpoint: str
    arena_fd: int
    arena_bytes: int
    arena_number: int


class ModelInfo(NamedTuple):
    """A model as the router describes it: *number* stands for its name on the wire."""

    number: int
    version: int
    manifest: Manifest


class Door:
    """A connection to the router's door; made by connecting, which blocks for at most *timeout_s*.

    Raises ``router.unavailable`` when nobody is there.
    """

    def __init__(self, run_dir: str | None = None, *, timeout_s: float = ANSWER_S) -> None:
        folder = Path(run_dir or os.environ.get("BEDSIT_RUN_DIR") or DEFAULT_RUN_DIR)
        path = folder / "router" / "door.sock"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._wait_no_longer_than(timeout_s)
            self.socket.connect(str(path))
        except OSError as e:
            self.socket.close()
            # Refused or crowded, and not absent: it was there a moment ago, and whoever keeps it starts another one.
            # So it is with one that ends or hangs with us at its door.
            restarting = isinstance(e, ConnectionRefusedError | BlockingIOError)
            what = f"cannot reach the router at {path}: {e.strerror or e}"
            raise error("router.unavailable", what, "is bedsit up?", restarting=restarting) from None

    def open(
        self, tenant: str | None, key: str | None, *, lane: LaneName = "fast", timeout_s: float = ANSWER_S
    ) -> Opened:
        """Start a session on that lane. Raises ``key.invalid``, ``tenant.not_found``, ``session.limit``."""
        question = {"op": "open", "v": PROTOCOL, "tenant": tenant, "key": key, "lane": lane}
        answer, fds = self._ask(question, timeout_s)
        match (answer, fds):
            case (
                {
                    "tenant": str(name),
                    "token": bytes(token),
                    "endpoint": str(endpoint),
                    "arena": int(number),
                    "arena_bytes": int(arena_bytes),
                },
                [arena_fd],
            ):
                return Opened(name, token, endpoint, arena_fd, arena_bytes, number)
        close_all(fds)
        raise error("wire.malformed", "the door sent no arena")

    def is_closed(self) -> bool:
        """Whether the router is gone, where the lane is ZeroMQ: then it says nothing here, and readable means gone.

        Any number of threads may ask at once; one poll object would not let them.
        """
        try:
            self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def fileno(self) -> int:
        """The descriptor of the connection."""
        return self.socket.fileno()

    def hang_up(self) -> None:
        """End the session, and wake whoever waits for something from it; the descriptor stays open until ``close``."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the session, in this process; who has a copy of the descriptor by a fork keeps it alive."""
        self.socket.close()

    def _wait_no_longer_than(self, timeout_s: float) -> None:
        # The kernel's own timeouts: with settimeout(), Python would also wait where MSG_DONTWAIT asks it not to.
        seconds, rest = divmod(max(0.001, timeout_s), 1)  # nothing at all would mean for ever
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(rest * 1e6)))

    def _ask(self, question: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], list[int]]:
        try:
            self._wait_no_longer_than(timeout_s)
            send_packet(self.socket, question)
            answer, fds = recv_packet(self.socket, 1)
        except OSError as e:
            # The answer may still come; hang up, so that it is never taken for something else.
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            what = f"the router does not answer: {e.strerror or e}"
            raise error("router.unavailable", what, restarting=True) from None
        if answer is None:
            raise error("router.unavailable", "the router closed the session", "try again", restarting=True)
        if "error" in answer:
            close_all(fds)
            raise error_from_wire(answer["error"])
        return answer, fds


def read_model_info(told: Any) -> ModelInfo:
    """The router's answer to ``describe``. Raises ``wire.malformed``."""
    match told:
        case {"number": int(number), "version": int(version), "manifest": bytes(manifest)}:
            return ModelInfo(number, version, decode_manifest(manifest))
    raise error("wire.malformed", "not a description of a model")


def read_model_list(told: Any) -> dict[str, list[int]]:
    """The router's answer to ``models``: versions by name, the default one first. Raises ``wire.malformed``."""
    match told:
        case {"models": list(rows)} if all(map(_is_model_row, rows)):
            return dict(rows)
    raise error("wire.malformed", "not a list of models")


def _is_model_row(row: Any) -> bool:
    match row:
        case [str(), list(versions)]:
            return all(isinstance(version, int) for version in versions)
    return False
