"""A server's part in a comparison, from its start to its figures, or to the reason why it has none."""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bedsit.ipc.errors import BedsitError
from bench.rivals.figures import Cases, Lengths, Round, measure_round, merge_rounds
from bench.rivals.load import Case, await_answer
from bench.rivals.models import MODELS
from bench.rivals.server import Server

_START_S: Final = 120.0
_WAKE_S: Final = 30.0
#: Of what a server says when it fails, in the report.
_WORDS: Final = 800
FAILURES: Final = (RuntimeError, OSError, BedsitError)


@dataclass
class Contender:
    """One server's part in the comparison: what it has shown so far, or why it is out.

    *make* gives a server that is not started, for a purpose in one word. *active* is the one that was used last.
    """

    name: str
    version: str | None = None
    make: Callable[[str], Server] | None = None
    server: Server | None = None
    active: Server | None = None
    error: str | None = None
    rounds: list[Round] = field(default_factory=list)
    first_answers_s: list[float] = field(default_factory=list)

    def attempt(self, work: Callable[[], None]) -> None:
        """Do *work*, unless it is out; what fails puts it out, with the reason."""
        if self.error is not None:
            return
        try:
            work()
        except FAILURES as e:
            said = self.active.explain() if self.active else ""
            self.error = " ".join((f"{e}; it said: {said}" if said else str(e)).split())[:_WORDS]
            print(f"{self.name}: {self.error}", file=sys.stderr)
            self.stop()

    def measure_first_answer(self, case: Case) -> None:
        """Start another one, for the tiny model alone, and stop it when it has answered."""
        began = time.monotonic()
        server = self._make("first")
        try:
            server.start([case.model])
            self.first_answers_s.append(await_answer(server.connect, case, began + _START_S, server.is_there) - began)
        finally:
            server.stop()

    def start(self, cases: Cases) -> None:
        """Start it with all models, and let it rest as soon as each has answered."""
        self.server = self._make("main")
        self.server.start(list(MODELS))
        _await(self.server, cases, _START_S)
        self.server.rest()

    def take_turn(self, cases: Cases, lengths: Lengths) -> None:
        """One round."""
        if self.server is None:
            raise RuntimeError("it was not started")
        self.active = self.server
        self.server.wake()
        _await(self.server, cases, _WAKE_S)
        self.rounds.append(measure_round(self.server, cases, lengths))
        self.server.rest()

    def stop(self) -> None:
        """Stop it. That it could not be is a failure too."""
        server, self.server = self.server, None
        try:
            if server is not None:
                server.stop()
        except FAILURES as e:
            self.error = self.error or str(e)

    def summarise(self) -> dict[str, Any]:
        """Its entry in the report."""
        if self.error is not None:
            return {"error": self.error, "version": self.version}
        first_answer_s = round(statistics.median(self.first_answers_s), 2)
        return {"version": self.version, **merge_rounds(self.rounds), "first_answer_s": first_answer_s}

    def _make(self, purpose: str) -> Server:
        if self.make is None:
            raise RuntimeError("it was not found")
        self.active = self.make(purpose)
        return self.active


def _await(server: Server, cases: Cases, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for case in (cases.tiny, cases.batched, cases.echoes[0]):
        await_answer(server.connect, case, deadline, server.is_there)
