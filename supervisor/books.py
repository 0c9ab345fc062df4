"""Keeps the ledger: asks the router and the kernel what was used, every few seconds and when a slot ends.

Both are compared for tenants that take turns on cores: who computes out of turn is reported.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import Stats
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.control import Control, UsageReport
from bedsit.supervisor.evasion import Count, Evasion
from bedsit.supervisor.holdings import Holding
from bedsit.supervisor.ledger import Ledger, Sample, Taken
from bedsit.supervisor.log import get_log
from bedsit.supervisor.registry import Registry, TenantRow
from bedsit.supervisor.room import LiveSlot
from bedsit.supervisor.slots import Slots

_EVERY_S: Final = 5.0
_ANSWER_S: Final = 1.0
_KEPT: Final = timedelta(days=400)
_PARTED_MAX: Final = 1000
_DAY_S: Final = 86_400.0


def hour_of(at: datetime) -> str:
    """The hour of a time, as text that sorts."""
    return at.strftime("%Y-%m-%dT%H")


def _now_us() -> int:
    return time.monotonic_ns() // 1000


@dataclass
class Books:
    """*holdings* says who has which device now, *feed* hears of slots that compute out of turn."""

    registry: Registry
    slots: Slots
    control: Control
    ledger: Ledger
    holdings: Callable[[], Iterable[Holding]]
    feed: Callable[[on.Stimulus], None]
    _evasion: Evasion = field(default_factory=Evasion)
    #: By tenant, model and version, as the router told it last.
    _turns_us: dict[tuple[int, int, int], int] = field(default_factory=dict)
    #: What the ledger could not be told.
    _unwritten: dict[tuple[int, int, int], Taken] = field(default_factory=dict)
    _run: str = ""
    _held_at_us: int = field(default_factory=_now_us)
    #: Tenants that were deleted, the last of them, with their models: they pay for their last seconds, too.
    _parted: dict[int, tuple[str, dict[int, str]]] = field(default_factory=dict)

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
        has_answered = await self.control.ask_usage(_ANSWER_S)
        samples = list(self._sample_all())
        self._try(lambda: self.ledger.sample(samples))
        self._reside()
        if has_answered:  # else turns are missing, and who had them would be taken for one that computed without
            self._compare(samples)

    def hear(self, report: UsageReport) -> None:
        """The router says what it counted."""
        if report.run != self._run:
            self._run, self._turns_us, self._unwritten = report.run, {}, {}
        rows = {(row.tenant, row.model, row.version): row for row in report.rows}
        self._turns_us |= {place: row.turns_us for place, row in rows.items()}
        rows = self._unwritten | rows  # the router tells again only what has changed
        is_written = self._try(lambda: self.ledger.hear(report.run, rows.values(), report.devices, self._find_names))
        self._unwritten = {} if is_written else rows

    def part_with(self, row: TenantRow) -> None:
        """A tenant is about to be deleted."""
        self._parted[row.number] = row.name, self._list_models(row.number)
        for number in list(self._parted)[:-_PARTED_MAX]:
            del self._parted[number]

    def slot_ended(self, live: LiveSlot, stats: Stats | None) -> None:
        """A slot is empty, and its group still there."""
        sample = self._sample(live, stats)
        if sample is not None:
            self._try(lambda: self.ledger.sample([sample]))
            self._try(lambda: self.ledger.forget_slot(live.record.slot))

    def _sample_all(self) -> Iterator[Sample]:
        for slot, live in self.slots.live.items():
            if live.record.tenant is not None:
                sample = self._sample(live, self.slots.stats(slot))
                if sample is not None:
                    yield sample

    def _sample(self, live: LiveSlot, stats: Stats | None) -> Sample | None:
        record = live.record
        if stats is None or record.tenant is None:
            return None
        number = self._find_number(record.tenant)
        if number is None:
            return None
        cpu_us = int(stats.cpu_usage_s * 1e6)
        now_us = _now_us()
        since_us = now_us if live.assigned_s is None else int(live.assigned_s * 1e6)
        return Sample(record.slot, number, record.tenant, cpu_us, stats.memory_bytes, now_us, since_us)

    def _reside(self) -> None:
        now_us = _now_us()
        passed_us = now_us - self._held_at_us
        held = list(self.holdings())
        numbers = {row.name: row.number for row in self.registry.seated()}
        tenants = [
            (
                numbers[each.tenant],
                each.tenant,
                0 if each.takes_turns else passed_us,
                each.memory_bytes / (1 << 20) * passed_us / 1e6,
            )
            for each in held
            if each.tenant in numbers
        ]
        devices = [(each.device, passed_us, 0 if each.tenant else passed_us) for each in held if not each.takes_turns]
        if self._try(lambda: self.ledger.reside(tenants, devices)):
            self._held_at_us = now_us

    def _compare(self, samples: Sequence[Sample]) -> None:
        """End the slots of who computes out of turn on cores that others take turns on."""
        cores = {row.name: len(row.seat.cores) for row in self.registry.seated() if row.seat and row.seat.is_shared}
        counts = {}
        for name in {each.tenant_name for each in samples if cores.get(each.tenant_name)}:
            own = [each for each in samples if each.tenant_name == name]
            if all(self.slots.live[each.slot].record.phase == "serving" for each in own):
                turns_us = sum(us for (tenant, _, _), us in self._turns_us.items() if tenant == own[0].tenant)
                marks = frozenset([self._run, *(each.slot for each in own)])
                counts[name] = Count(sum(each.cpu_us for each in own), turns_us * cores[name], marks)
        for name, part in self._evasion.judge(_now_us(), counts).items():
            text = f"computed for {part:.0%} of the time without having a turn"
            for each in samples:
                if each.tenant_name == name:
                    self.feed(on.SlotHung(each.slot, None, text, "turn.evaded"))

    def _find_number(self, name: str) -> int | None:
        try:
            return self.registry.tenant(name).number
        except BedsitError:
            return next((number for number, (parted, _) in reversed(self._parted.items()) if parted == name), None)

    def _find_names(self, tenant: int, model: int) -> tuple[str, str] | None:
        row = self.registry.find_tenant(tenant)
        name, models = (row.name, self._list_models(tenant)) if row else self._parted.get(tenant, ("", {}))
        return (name, models[model]) if model in models else None

    def _list_models(self, tenant: int) -> dict[int, str]:
        return {each.number: each.name for each in self.registry.models(tenant)}

    def _try(self, write: Callable[[], None]) -> bool:
        """A ledger that cannot be written loses nothing by it: counters go on, and are added when it can."""
        try:
            write()
        except sqlite3.Error as e:
            get_log().warning("ledger.behind", error=str(e))
            return False
        return True
