"""A request inside the router, from admission to its one final answer."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bedsit.ipc.wire import Envelope

if TYPE_CHECKING:
    from bedsit.supervisor.router.sessions import Session


@dataclass(slots=True, eq=False)
class Request:
    """What a client asked. *attempts* counts dispatches; *withdrawn* means that nobody waits for the result."""

    session: "Session"
    envelope: Envelope
    packet: bytes
    version: int
    idempotent: bool
    attempts: int = 0
    withdrawn: bool = False

    def is_expired(self) -> bool:
        """Whether its deadline has passed."""
        return 0 < self.envelope.deadline_ns <= time.monotonic_ns()
