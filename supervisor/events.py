"""What happened, for operators: a bounded ring in the database, and a live feed.

Events are no state: they are written without waiting for the disk, and when they cannot be written they are counted
and logged, never a reason to fail.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bedsit.supervisor.log import get_log

Kind = Literal[
    "backup.taken",
    "daemon.started",
    "daemon.stopped",
    "device.degraded",
    "device.ecc",
    "device.found",
    "device.gone",
    "device.partitioned",
    "device.recovered",
    "device.unpartitioned",
    "device.xid",
    "key.created",
    "key.revoked",
    "memory.exceeded",
    "memory.over",
    "memory.unlimited",
    "model.changed",
    "model.deleted",
    "model.deployed",
    "model.load_failed",
    "model.quarantined",
    "model.released",
    "router.connected",
    "router.lost",
    "slot.adopted",
    "slot.assigned",
    "slot.call_refused",
    "slot.destroyed",
    "slot.died",
    "slot.misbehaved",
    "slot.ready",
    "slot.refused",
    "tenant.changed",
    "tenant.created",
    "tenant.degraded",
    "tenant.deleted",
    "tenant.evicted",
    "tenant.given_up",
    "tenant.parked",
    "tenant.recovered",
    "tenant.restarted",
    "tenant.scaled",
    "tenant.started",
    "tenant.stopped",
    "tenant.woken",
    "turn.evaded",
    "turn.overrun",
    "zygote.died",
    "zygote.retired",
    "zygote.started",
]
_FEED_MAX: Final = 1000
_PRUNE_EVERY: Final = 64


@dataclass(frozen=True)
class Happening:
    """One line of the ring. Text and cause are ours or bounded and printable."""

    id: int
    at: str
    kind: str
    tenant: str | None
    slot: str | None
    cause: str | None
    text: str

    def to_wire(self) -> dict[str, Any]:
        """As the admin API shows it."""
        return asdict(self)


class Events:
    """The ring. *now* gives the time as RFC 3339 text."""

    def __init__(self, path: Path, kept: int, now: Callable[[], str]) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        # NORMAL in WAL mode: consistent after a crash, but the last lines may be missing after a power cut.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._kept = kept
        self.now = now
        self._feeds: set[asyncio.Queue[Happening]] = set()
        self._until_prune = 0
        self.lost = 0

    def close(self) -> None:
        """Close the ring."""
        self._db.close()

    def add(
        self, kind: Kind, text: str, tenant: str | None = None, slot: str | None = None, cause: str | None = None
    ) -> None:
        """Write one event, log it, feed it to who follows. Never raises."""
        at = self.now()
        row = (at, kind, tenant, slot, cause, text)
        get_log().info(kind, text=text, tenant=tenant, slot=slot, cause=cause)
        try:
            insert = "INSERT INTO events (at, kind, tenant, slot, cause, text) VALUES (?, ?, ?, ?, ?, ?)"
            number = self._db.execute(insert, row).lastrowid or 0
            self._prune(number)
        except sqlite3.Error as e:
            self.lost += 1
            get_log().warning("event.lost", kind=kind, error=str(e), lost=self.lost)
            number = 0
        happening = Happening(number, *row)
        for feed in self._feeds:
            if feed.full():  # a slow reader loses the oldest; it sees the gap in the ids
                feed.get_nowait()
            feed.put_nowait(happening)

    def last(self, limit: int, tenant: str | None = None) -> list[Happening]:
        """The newest *limit* events, oldest first."""
        query = (
            "SELECT id, at, kind, tenant, slot, cause, text FROM events WHERE ?1 IS NULL OR tenant = ?1"
            " ORDER BY id DESC LIMIT ?2"
        )
        return [Happening(*row) for row in self._db.execute(query, (tenant, limit))][::-1]

    @contextmanager
    def feed(self) -> Iterator[asyncio.Queue[Happening]]:
        """A queue that gets every event from now on."""
        queue: asyncio.Queue[Happening] = asyncio.Queue(_FEED_MAX)
        self._feeds.add(queue)
        try:
            yield queue
        finally:
            self._feeds.discard(queue)

    def _prune(self, newest: int) -> None:
        self._until_prune -= 1
        if self._until_prune < 0:
            self._until_prune = _PRUNE_EVERY
            self._db.execute("DELETE FROM events WHERE id <= ?", (newest - self._kept,))
