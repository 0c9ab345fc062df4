"""Keeps the ledger: asks the router and the kernel what was used, every few seconds and when a slot ends."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import Stats
from bedsit.supervisor.control import Control, UsageReport
from bedsit.supervisor.holdings import Holding
from bedsit.supervisor.ledger import Ledger, Sample
from bedsit.supervisor.log import get_log
from bedsit.supervisor.records import Record
from bedsit.supervisor.registry import Registry
from bedsit.supervisor.slots import Slots

_EVERY_S: Final = 5.0
_ANSWER_S: Final = 1.0
_KEPT: Final = timedelta(days=400)
_DAY_S: Final = 86_400.0


def hour_of(at: datetime) -> str:
    """The hour of a time, as text that sorts."""
    return at.strftime("%Y-%m-%dT%H")


def _now_us() -> int:
    return time.monotonic_ns() // 1000


@dataclass
class Books:
    """*holdings* says who has which device alone now."""

    registry: Registry
    slots: Slots
    control: Control
    ledger: Ledger
    holdings: Callable[[], Iterable[Holding]]
    _held_at_us: int = field(default_factory=_now_us)
    #: Of tenants whose slots were sampled: one that is deleted pays for its last seconds, too.
    _numbers: dict[str, int] = field(default_factory=dict)

    async def run(self) -> None:
        """Keep them for ever."""
        pruned_s = -_DAY_S
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.bring_up_to_date()
            if time.monotonic() - pruned_s > _DAY_S:
                pruned_s = time.monotonic()
                self._try(lambda: self.ledger.prune(hour_of(datetime.now(UTC) - _KEPT)))

    async def bring_up_to_date(self) -> None:
        """Ask everybody now."""
        await self.control.ask_usage(_ANSWER_S)
        self._try(lambda: self.ledger.sample(self._sample_all()))
        self._reside()

    def hear(self, report: UsageReport) -> None:
        """The router says what it counted."""
        self._try(lambda: self.ledger.hear(report.run, report.rows, report.devices, self._find_names))

    def slot_ended(self, record: Record, stats: Stats | None) -> None:
        """A slot is empty, and its group still there."""
        sample = self._sample(record, stats)
        if sample is not None:
            self._try(lambda: self.ledger.sample([sample]))
            self._try(lambda: self.ledger.forget_slot(record.slot))

    def _sample_all(self) -> Iterator[Sample]:
        for slot, live in self.slots.live.items():
            if live.record.tenant is not None:
                sample = self._sample(live.record, self.slots.stats(slot))
                if sample is not None:
                    yield sample

    def _sample(self, record: Record, stats: Stats | None) -> Sample | None:
        if stats is None or record.tenant is None:
            return None
        with suppress(BedsitError):
            self._numbers[record.tenant] = self.registry.tenant(record.tenant).number
        number = self._numbers.get(record.tenant)
        if number is None:
            return None
        cpu_us = int(stats.cpu_usage_s * 1e6)
        return Sample(record.slot, number, record.tenant, cpu_us, stats.memory_bytes, _now_us())

    def _reside(self) -> None:
        now_us = _now_us()
        passed_us, self._held_at_us = now_us - self._held_at_us, now_us
        held = list(self.holdings())
        numbers = {row.name: row.number for row in self.registry.seated()}
        tenants = [
            (numbers[each.tenant], each.tenant, passed_us, each.memory_bytes / (1 << 20) * passed_us / 1e6)
            for each in held
            if each.tenant in numbers
        ]
        devices = [(each.device, passed_us, 0 if each.tenant else passed_us) for each in held]
        self._try(lambda: self.ledger.reside(tenants, devices))

    def _find_names(self, tenant: int, model: int) -> tuple[str, str] | None:
        row = self.registry.find_tenant(tenant)
        if row is None:
            return None
        found = [each.name for each in self.registry.models(tenant) if each.number == model]
        return (row.name, found[0]) if found else None

    def _try(self, write: Callable[[], None]) -> None:
        """A ledger that cannot be written loses nothing by it: counters go on, and are added when it can."""
        try:
            write()
        except sqlite3.Error as e:
            get_log().warning("ledger.behind", error=str(e))
