"""How a keeper tells of its start: on the screen, or through a pipe to the ``up --detach`` that waits for it."""

import contextlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from bedsit.cli.render import Screen
from bedsit.ipc.admin import Phase
from bedsit.ipc.errors import BedsitError, error, error_from_wire

CONFIG_EXIT = 78


class Report(Protocol):
    """Who hears of the start."""

    def phase(self, phase: Phase) -> None:
        """A phase began or ended."""

    def ready(self, text: str) -> None:
        """Everything is up."""

    def fail(self, failure: BedsitError, exit_code: int) -> None:
        """The start failed."""

    def notice(self, text: str) -> None:
        """The keeper did something on its own: took over, started again, ends."""

    def line(self, source: str, text: str) -> None:
        """The daemon or the router logged something."""


class ScreenReport:
    """Tells a person: phases as they end, what is logged, what failed."""

    def __init__(self, screen: Screen, hear: Callable[[Phase], None]) -> None:
        self._screen = screen
        self._hear = hear

    def phase(self, phase: Phase) -> None:
        """Tell a phase."""
        self._hear(phase)

    def ready(self, text: str) -> None:
        """Tell that everything is up, and how to end it."""
        self._screen.note(f"{text}; Ctrl-C ends everything")

    def fail(self, failure: BedsitError, exit_code: int) -> None:
        """Tell what failed."""
        del exit_code
        self._screen.fail(failure)

    def notice(self, text: str) -> None:
        """Tell what the keeper did."""
        self._screen.note(f"up      {text}")

    def line(self, source: str, text: str) -> None:
        """Tell what was logged."""
        self._screen.note(f"{source:<7} {text}")


class PipeReport:
    """Tells the waiting parent, one JSON line each. A parent that stopped waiting is no trouble.

    What concerns nobody who waits goes to *screen*, which is the keeper's own log by then.
    """

    def __init__(self, fd: int, screen: Screen) -> None:
        self._fd: int | None = fd
        self._screen = screen

    def phase(self, phase: Phase) -> None:
        """Send a phase."""
        self._send({"phase": phase.name, "ms": phase.ms})

    def ready(self, text: str) -> None:
        """Send that everything is up, and hang up."""
        self.notice(text)
        self._send({"ready": text})
        self._hang_up()

    def fail(self, failure: BedsitError, exit_code: int) -> None:
        """Send what failed, and hang up."""
        self._screen.fail(failure)
        self._send({"error": failure.to_wire(), "exit_code": exit_code})
        self._hang_up()

    def notice(self, text: str) -> None:
        """Log what the keeper did."""
        self._screen.note(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}")

    def line(self, source: str, text: str) -> None:
        """Say nothing: it is in that process's log file."""

    def _send(self, message: dict[str, Any]) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, json.dumps(message).encode() + b"\n")

    def _hang_up(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def hear_report(fd: int, hear: Callable[[Phase], None]) -> str:
    """Read a PipeReport to its end; what it said when ready. Takes over *fd*. Raises what failed there.

    The error's ``detail["exit_code"]`` is what the keeper exited with.
    """
    with os.fdopen(fd, "rb") as pipe:
        for data in pipe:
            message = json.loads(data)
            if "ready" in message:
                return str(message["ready"])
            if "error" in message:
                failure = error_from_wire(message["error"])
                failure.detail["exit_code"] = message["exit_code"]
                raise failure
            hear(Phase(message["phase"], message["ms"]))
    raise error("internal", "bedsit up ended before it said why", "look into its log: logs/up.log in the run directory")
