"""The ledger: what tenants used, by the hour, added up from counters that only grow.

Guarantees: a report that is heard twice, or again after a crash of whoever told or heard it, is added once; what is
added and what was seen are one transaction. Blocks for no fsync: after a power cut the last seconds may be missing.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

By = Literal["tenant", "model", "device"]
Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]

_MIB: Final = 1 << 20
#: A slot that nobody looked at for longer has memory that nobody knows of.
_BLIND_S: Final = 3600.0
#: ``total`` and not ``sum``, and nothing above 2^60: what a router says may be absurd, and must spoil nobody's rows.
_BY: Final[dict[By, str]] = {
    "tenant": """
        SELECT tenant_name AS tenant, CAST(total(requests) AS INTEGER) AS requests, total(worker_us) / 1e6 AS worker_s,
            total(device_us) / 1e6 AS device_s, total(cpu_us) / 1e6 AS cpu_s,
            total(memory_mib_s) / 1024 AS memory_gib_s, total(vram_mib_s) / 1024 AS vram_gib_s
        FROM (
            SELECT hour, tenant, tenant_name, requests, worker_us, turns_us AS device_us, 0 AS cpu_us,
                0.0 AS memory_mib_s, 0.0 AS vram_mib_s FROM usage_models
            UNION ALL SELECT hour, tenant, tenant_name, 0, 0, device_us, cpu_us, memory_mib_s, vram_mib_s
            FROM usage_tenants
        ) WHERE hour >= :since AND (:tenant IS NULL OR tenant_name = :tenant)
        GROUP BY tenant ORDER BY tenant_name, tenant
    """,
    "model": """
        SELECT tenant_name AS tenant, model_name AS model, version, CAST(total(requests) AS INTEGER) AS requests,
            total(worker_us) / 1e6 AS worker_s, total(turns_us) / 1e6 AS device_s
        FROM usage_models WHERE hour >= :since AND (:tenant IS NULL OR tenant_name = :tenant)
        GROUP BY usage_models.tenant, usage_models.model, version
        ORDER BY tenant_name, usage_models.tenant, model_name, version
    """,
    "device": """
        SELECT device, total(wall_us) / 1e6 AS wall_s, (total(wall_us) - total(idle_us)) / 1e6 AS used_s,
            total(idle_us) / 1e6 AS idle_s, total(gaps_us) / 1e6 AS gaps_s
        FROM usage_devices WHERE hour >= :since AND :tenant IS NULL GROUP BY device ORDER BY device
    """,
}


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """What one version of a model took so far: of workers, and of a device in turns."""

    tenant: Number
    model: Number
    version: Number
    requests: Amount
    worker_us: Amount
    turns_us: Amount


class Passed(msgspec.Struct, frozen=True, array_like=True):
    """How long a device has been given out in turns so far, and how long nobody had one."""

    device: Annotated[str, msgspec.Meta(max_length=128)]
    wall_us: Amount
    idle_us: Amount
    gaps_us: Amount


class Sample(NamedTuple):
    """What a slot used so far, and uses now, at a time of CLOCK_MONOTONIC; it is its tenant's since another one."""

    slot: str
    tenant: int
    tenant_name: str
    cpu_us: int
    memory_bytes: int
    at_us: int
    since_us: int


class Ledger:
    """Its own connection to the database. *hour_of_now* gives the hour as text that sorts: ``2026-11-27T06``."""

    def __init__(self, path: Path, hour_of_now: Callable[[], str]) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._hour = hour_of_now

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def hear(
        self,
        run: str,
        rows: Iterable[Taken],
        devices: Iterable[Passed],
        names: Callable[[int, int], tuple[str, str] | None],
    ) -> None:
        """Add what a router counted since it was heard last; *names* of a tenant's and a model's number, if known."""
        hour, source = self._hour(), f"router/{run}"
        with self._writing() as db:
            known = db.execute("SELECT EXISTS (SELECT 1 FROM usage_seen WHERE source = ?)", (source,)).fetchone()[0]
            if not known:  # there is one router: the one before has said its last
                db.execute("DELETE FROM usage_seen WHERE source LIKE 'router/%'")
            for row in rows:
                now = (row.requests, row.worker_us, row.turns_us)
                more = self._see(source, f"{row.tenant}/{row.model}/{row.version}", now)
                if any(more):
                    name, model = names(row.tenant, row.model) or self._remember(row.tenant, row.model)
                    db.execute(
                        "INSERT INTO usage_models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                        " requests = min(requests + excluded.requests, 1 << 60), worker_us = min(worker_us +"
                        " excluded.worker_us, 1 << 60), turns_us = min(turns_us + excluded.turns_us, 1 << 60)",
                        (hour, row.tenant, name, row.model, model, row.version, *more),
                    )
            for each in devices:
                more = self._see(source, f"device {each.device}", (each.wall_us, each.idle_us, each.gaps_us))
                self._add_device(hour, each.device, *more)

    def sample(self, samples: Iterable[Sample]) -> None:
        """Add what slots used since they were sampled last."""
        hour = self._hour()
        with self._writing() as db:
            for each in samples:
                key = ("slot", each.slot)
                was = db.execute(
                    "SELECT first, second, third FROM usage_seen WHERE source = ? AND counter = ?", key
                ).fetchone()
                cpu_us, at_us, memory_bytes = was or (0, each.since_us, each.memory_bytes)
                passed_s = (each.at_us - at_us) / 1e6
                mean_mib = (memory_bytes + each.memory_bytes) / 2 / _MIB
                mib_s = mean_mib * passed_s if 0 < passed_s < _BLIND_S else 0.0
                now = (each.cpu_us, each.at_us, each.memory_bytes)
                db.execute("INSERT OR REPLACE INTO usage_seen VALUES (?, ?, ?, ?, ?)", (*key, *now))
                more_us = max(0, each.cpu_us - cpu_us)
                self._add_tenant(hour, each.tenant, each.tenant_name, cpu_us=more_us, memory_mib_s=mib_s)

    def forget_slot(self, slot: str) -> None:
        """It is gone, and was sampled a last time."""
        with self._writing() as db:
            db.execute("DELETE FROM usage_seen WHERE source = 'slot' AND counter = ?", (slot,))

    def reside(self, tenants: Iterable[tuple[int, str, int, float]], devices: Iterable[tuple[str, int, int]]) -> None:
        """Add who had devices: (number, name, us, MiB s of its memory), and (device, us in all, us of nobody)."""
        hour = self._hour()
        with self._writing():
            for tenant, name, device_us, mib_s in tenants:
                self._add_tenant(hour, tenant, name, device_us=device_us, vram_mib_s=mib_s)
            for device, wall_us, idle_us in devices:
                self._add_device(hour, device, wall_us, idle_us, 0)

    def prune(self, before_hour: str) -> None:
        """Forget what is older."""
        with self._writing() as db:
            db.execute("DELETE FROM usage_models WHERE hour < ?", (before_hour,))
            db.execute("DELETE FROM usage_tenants WHERE hour < ?", (before_hour,))
            db.execute("DELETE FROM usage_devices WHERE hour < ?", (before_hour,))

    def read(self, by: By, since_hour: str, tenant: str | None = None) -> list[dict[str, Any]]:
        """What was used from that hour on, added up."""
        found = self._db.execute(_BY[by], {"since": since_hour, "tenant": tenant})
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]

    def _see(self, source: str, counter: str, now: tuple[int, int, int]) -> tuple[int, ...]:
        """What has been added to counters; nothing where one of them went back, which none does."""
        was = self._db.execute(
            "SELECT first, second, third FROM usage_seen WHERE source = ? AND counter = ?", (source, counter)
        ).fetchone() or (0, 0, 0)
        more = tuple(new - old for new, old in zip(now, was, strict=True))
        if min(more) < 0:
            return 0, 0, 0
        if any(more):
            self._db.execute("INSERT OR REPLACE INTO usage_seen VALUES (?, ?, ?, ?, ?)", (source, counter, *now))
        return more

    def _remember(self, tenant: int, model: int) -> tuple[str, str]:
        """The names that a tenant and a model had, which are gone."""
        query = (
            "SELECT tenant_name, iif(model = ?2, model_name, ?3) FROM usage_models WHERE tenant = ?1"
            " ORDER BY model = ?2 DESC LIMIT 1"
        )
        found = self._db.execute(query, (tenant, model, f"#{model}")).fetchone()
        return found or (f"#{tenant}", f"#{model}")

    def _add_tenant(
        self,
        hour: str,
        tenant: int,
        name: str,
        *,
        cpu_us: int = 0,
        memory_mib_s: float = 0.0,
        device_us: int = 0,
        vram_mib_s: float = 0.0,
    ) -> None:
        self._db.execute(
            "INSERT INTO usage_tenants VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " cpu_us = cpu_us + excluded.cpu_us, memory_mib_s = memory_mib_s + excluded.memory_mib_s,"
            " device_us = device_us + excluded.device_us, vram_mib_s = vram_mib_s + excluded.vram_mib_s",
            (hour, tenant, name, cpu_us, memory_mib_s, device_us, vram_mib_s),
        )

    def _add_device(self, hour: str, device: str, wall_us: int, idle_us: int, gaps_us: int) -> None:
        if wall_us:
            self._db.execute(
                "INSERT INTO usage_devices VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " wall_us = min(wall_us + excluded.wall_us, 1 << 60),"
                " idle_us = min(idle_us + excluded.idle_us, 1 << 60),"
                " gaps_us = min(gaps_us + excluded.gaps_us, 1 << 60)",
                (hour, device, wall_us, idle_us, gaps_us),
            )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
