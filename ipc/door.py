"""The client's side of the door: one SEQPACKET connection for the life of a session.

The router learns from it who is calling (the kernel says the uid, the key says the tenant), hands out the arena and
the endpoint, and describes models. When the client dies the kernel closes it, and all that the session held is freed.
"""

import contextlib
import os
import select
import socket
import struct
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

from bedsit.ipc.errors import BedsitError, error, error_from_wire
from bedsit.ipc.manifest import Manifest, decode_manifest
from bedsit.ipc.seqpacket import close_all, recv_packet, send_packet

PROTOCOL: Final = 1
DEFAULT_RUN_DIR: Final = "/run/bedsit"
ANSWER_S: Final = 10.0


class Opened(NamedTuple):
    """What the door answered: *token* names the session on its lane, *arena_fd* is the caller's to close."""

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
    """An open connection to the router's door. Every call blocks for one round trip; calls take turns.

    No call takes longer than *timeout_s*: ``router.unavailable``, and the connection is of no further use.
    """

    def __init__(self, run_dir: str | None = None, *, timeout_s: float = ANSWER_S) -> None:
        folder = Path(run_dir or os.environ.get("BEDSIT_RUN_DIR") or DEFAULT_RUN_DIR)
        path = folder / "router" / "door.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._turn = Lock()
        try:
            self._wait_no_longer_than(timeout_s)
            self._ended = select.poll()
            self._ended.register(self._socket, select.POLLIN)
            self._socket.connect(str(path))
        except OSError as e:
            self._socket.close()
            raise error(
                "router.unavailable", f"cannot reach the router at {path}: {e.strerror or e}", "is bedsit up?"
            ) from None

    def open(self, tenant: str | None, key: str | None, *, timeout_s: float = ANSWER_S) -> Opened:
        """Start a session. Raises ``key.invalid``, ``permission.denied``, ``tenant.not_found``, ``session.limit``."""
        answer, fds = self._ask({"op": "open", "v": PROTOCOL, "tenant": tenant, "key": key}, timeout_s, max_fds=1)
        try:
            if len(fds) != 1:
                raise error("wire.malformed", "the door sent no arena")
            opened = Opened(
                tenant=str(answer["tenant"]),
                token=bytes(answer["token"]),
                endpoint=str(answer["endpoint"]),
                arena_fd=fds[0],
                arena_bytes=int(answer["arena_bytes"]),
                arena_number=int(answer["arena"]),
            )
        except (KeyError, TypeError, ValueError, BedsitError):
            close_all(fds)
            raise
        return opened

    def describe(self, model: str, version: int | None, *, timeout_s: float = ANSWER_S) -> ModelInfo:
        """What the router knows of a model. Raises ``model.not_found``."""
        answer, _ = self._ask({"op": "describe", "model": model, "version": version or 0}, timeout_s)
        return ModelInfo(int(answer["number"]), int(answer["version"]), decode_manifest(answer["manifest"]))

    def list_models(self) -> dict[str, list[int]]:
        """The tenant's models with their versions, the default one first."""
        answer, _ = self._ask({"op": "models"}, ANSWER_S)
        return {str(name): [int(v) for v in versions] for name, versions in answer["models"]}

    def is_closed(self) -> bool:
        """Whether the router is gone. Does not block. Between questions it says nothing: readable means gone."""
        return self._socket.fileno() < 0 or bool(self._ended.poll(0))

    def fileno(self) -> int:
        """The descriptor: readable outside of a call means that the router is gone."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the session."""
        self._socket.close()

    def _wait_no_longer_than(self, timeout_s: float) -> None:
        # The kernel's own timeouts: with settimeout(), Python would also wait where MSG_DONTWAIT asks it not to.
        seconds, rest = divmod(max(0.001, timeout_s), 1)  # nothing at all would mean for ever
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(rest * 1e6)))

    def _ask(self, question: dict[str, Any], timeout_s: float, max_fds: int = 0) -> tuple[dict[str, Any], list[int]]:
        with self._turn:
            try:
                self._wait_no_longer_than(timeout_s)
                send_packet(self._socket, question)
                answer, fds = recv_packet(self._socket, max_fds)
            except OSError as e:
                # The answer may still come; hang up, so that it is never taken for the answer to another question.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                raise error("router.unavailable", f"the router does not answer: {e.strerror or e}") from None
        if answer is None:
            raise error("router.unavailable", "the router closed the session", "it may be restarting; try again")
        if "error" in answer:
            close_all(fds)
            raise error_from_wire(answer["error"])
        return answer, fds
