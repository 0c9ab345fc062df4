"""Looks at who uses how much of GPUs that are shared, where nothing but this holds slots to their part.

Guarantees: the driver is asked only while such a slot is a tenant's; a process counts for the slot whose group it is in
when the numbers have come, so neither a child nor a number that is given again counts for somebody else.
Assumes no more than NVML does: what is allocated and freed between two looks was never there.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from bedsit.sandbox.budget import Budget
from bedsit.sandbox.cgroup import CgroupBackend
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.devices.model import Process
from bedsit.supervisor.devices.watch import Devices, Rhythm, Undone
from bedsit.supervisor.memory.ladder import Ladder, Use, Verdict
from bedsit.supervisor.memory.uses import sum_by_slot
from bedsit.supervisor.records import Record
from bedsit.supervisor.slots import Slots

_RHYTHM: Final = Rhythm(round_s=0.5, rest_s=1.0, rest_max_s=60.0)
#: Who goes over its quota and back all day long is told of so often.
_TOLD_PER_S: Final = 1 / 60
_TOLD_AT_ONCE: Final = 5


@dataclass
class Watcher:
    """Watches *slots*. *tell* hears who is over its quota (tenant, slot, text), *feed* who has to end for it."""

    devices: Devices
    slots: Slots
    backend: CgroupBackend
    tell: Callable[[str, str, str], None]
    feed: Callable[[on.Stimulus], None]
    rhythm: Rhythm = _RHYTHM
    _ladder: Ladder = field(default_factory=Ladder)
    _budgets: dict[str, Budget] = field(default_factory=dict)
    _untold: dict[str, int] = field(default_factory=dict)
    #: Until when a GPU that did not answer is left alone, and how often in a row it has not.
    _rests: dict[str, tuple[float, int]] = field(default_factory=dict)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self.rhythm.round_s)
            await self.look()

    async def look(self) -> None:
        """Look once at each GPU with somebody on it who is watched."""
        uses: dict[str, Use] = {}
        for uuid in sorted({record.device for record in self._list_watched()}):
            processes = await self._ask(uuid)
            for record in self._list_watched():  # after the numbers: who has come or gone meanwhile is seen
                if record.device == uuid and processes is not None:
                    used = sum_by_slot(processes, {record.slot: self.backend.procs(record.slot)})
                    uses[record.slot] = Use(used[record.slot], record.memory_bytes)
        for verdict in self._ladder.judge(uses):
            self._carry_out(verdict)

    def _list_watched(self) -> Iterator[Record]:
        for live in list(self.slots.live.values()):
            if live.record.held == "soft" and live.record.tenant is not None:
                yield live.record

    async def _ask(self, uuid: str) -> tuple[Process, ...] | None:
        """Who computes on that GPU; None where that cannot be told now. A GPU that fails is its inventory's to tell."""
        now = asyncio.get_running_loop().time()
        until, times = self._rests.get(uuid, (0.0, 0))
        if until > now:
            return None
        try:
            found = await self.devices.list_processes(uuid)
        except Undone:
            self._rests[uuid] = now + self.rhythm.rest(self.rhythm.rest_s, times), times + 1
            return None
        self._rests.pop(uuid, None)
        return found

    def _carry_out(self, verdict: Verdict) -> None:
        live = self.slots.live.get(verdict.slot)
        if live is None or live.record.tenant is None:
            return
        if verdict.what == "exceeded":
            self.feed(on.SlotExceeded(verdict.slot, verdict.text))
            return
        tenant = live.record.tenant
        if not self._budgets.setdefault(tenant, Budget(_TOLD_PER_S, _TOLD_AT_ONCE)).take(1):
            self._untold[tenant] = self._untold.get(tenant, 0) + 1
            return
        untold = self._untold.pop(tenant, 0)
        self.tell(tenant, verdict.slot, f"{verdict.text} ({untold} more were not told)" if untold else verdict.text)
