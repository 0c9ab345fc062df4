"""Callers that wait for the lifecycle: what they want written down when it comes to that, and their answer."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bedsit.ipc.errors import BedsitError

#: Manifests by (model number, version), as the slot's worker answered them: opaque.
Manifests = Mapping[tuple[int, int], bytes]


@dataclass
class Operation:
    """One roll under way. *commit* writes it down or raises; *progress* takes phases for people."""

    id: str
    commit: Callable[[Manifests], None]
    progress: Callable[[str], None]
    answer: asyncio.Future[BedsitError | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Operations:
    """All rolls under way."""

    def __init__(self) -> None:
        self._running: dict[str, Operation] = {}

    def open(self, commit: Callable[[Manifests], None], progress: Callable[[str], None]) -> Operation:
        """A new operation. Close it when its caller leaves."""
        operation = Operation(secrets.token_hex(4), commit, progress)
        self._running[operation.id] = operation
        return operation

    def close(self, operation: Operation) -> None:
        """Nobody waits for it any more."""
        self._running.pop(operation.id, None)

    def commit(self, operation: str, manifests: Manifests) -> None:
        """Write down what the operation wants. Raises what its commit raises."""
        self._running[operation].commit(manifests)

    def answer(self, operation: str, error: BedsitError | None) -> None:
        """Let the caller go on."""
        waiting = self._running.get(operation)
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(error)

    def tell(self, operation: str | None, phase: str) -> None:
        """Tell the caller how far it is."""
        waiting = self._running.get(operation or "")
        if waiting is not None:
            waiting.progress(phase)
