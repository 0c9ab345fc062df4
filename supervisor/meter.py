"""What tenants use, and what follows from it: who may be parked, who needs more slots, whether memory runs out.

`Meter` is pure: clock and counts are passed in. `Look` reads the counts once a second and feeds what follows.

A tenant gets another slot as soon as its work needs one, and loses one only when it has not needed it for a while; one
that is idle for as long as its operator said loses all but those that are kept. Who has to go for somebody else is the
one that costs least: idle for long, quick to bring back, large.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Final

from bedsit.supervisor import stimuli as on
from bedsit.supervisor.control import Activity, Control
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.slots import Slots
from bedsit.supervisor.tenancy import Tenant

LOOK_S: Final = 1.0
#: Slots are made for this much use of each, and for what waits to be done within the horizon.
_USE: Final = 0.8
_HORIZON_S: Final = 0.5
#: A slot that was needed within this time is kept.
_KEEP_S: Final = 30.0
#: Nobody has to go who was asked within this time.
_IDLE_S: Final = 1.0
_ANSWER_S: Final = 0.5
#: Where nobody has measured yet how long it takes to bring a tenant back.
_USUAL_LOAD_S: Final = 1.0
#: Part of the time in which some process waited for memory, over ten seconds (Documentation/accounting/psi.rst).
_PRESSURE: Final = 20.0
_RESERVE: Final = 0.05


@dataclass
class _Pulse:
    """What is remembered of one tenant."""

    active_s: float
    looked_s: float
    busy_us: int = 0
    needed: deque[tuple[float, int]] = field(default_factory=deque)


class Meter:
    """Remembers who was active when, and how many slots were needed."""

    def __init__(self) -> None:
        self._pulses: dict[str, _Pulse] = {}

    def hear(self, now_s: float, tenants: Mapping[str, Tenant], active: Mapping[str, Activity]) -> list[on.Stimulus]:
        """What follows from the *active* ones' counts; who is not among them has done nothing since the last time."""
        for name in self._pulses.keys() - tenants.keys():
            del self._pulses[name]
        out: list[on.Stimulus] = []
        for name, tenant in tenants.items():
            if not tenant.crew:
                self._pulses.pop(name, None)
                continue
            pulse = self._pulses.setdefault(name, _Pulse(now_s, now_s))
            activity = active.get(name)
            if activity is not None:
                pulse.active_s = now_s
            policy = tenant.policy
            if policy.max_slots > max(1, policy.min_slots):
                out += _fit(tenant, _needed(pulse, activity, now_s, len(tenant.serving)))
            is_idle = 0 < policy.idle_s <= now_s - pulse.active_s
            if is_idle and tenant.target > policy.min_slots:
                out.append(on.TenantIdle(name))
            pulse.looked_s = now_s
        return out

    def rank(
        self, now_s: float, tenants: Mapping[str, Tenant], load_s: Mapping[str, float], bytes_of: Callable[[str], int]
    ) -> tuple[str, ...]:
        """Who may be parked, the cheapest first: by what bringing it back costs, how soon, for how much memory."""
        costs: list[tuple[float, str]] = []
        for name, tenant in tenants.items():
            pulse = self._pulses.get(name)
            idle_s = now_s - pulse.active_s if pulse is not None else 0.0
            if tenant.can_park and idle_s >= _IDLE_S:
                size = max(1, sum(map(bytes_of, tenant.crew)))
                costs.append((load_s.get(name, _USUAL_LOAD_S) / (idle_s * size), name))
        return tuple(name for _, name in sorted(costs))


class Look:
    """Asks the router and the kernel once a second, and tells the lifecycle what follows."""

    def __init__(
        self, house: House, slots: Slots, control: Control, feed: Callable[[on.Stimulus], None], reserve_bytes: int
    ) -> None:
        self._house, self._slots, self._control, self._feed = house, slots, control, feed
        self._meter = Meter()
        self._reserve_bytes = reserve_bytes

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            active = await self._control.activity(_ANSWER_S)
            if active is not None:
                for stimulus in self._meter.hear(time.monotonic(), self._house.tenants, active):
                    self._feed(stimulus)
            left = read_memory_left(self._reserve_bytes)
            self._feed(on.MemoryLeft(left))
            if left < 0:
                self.find_room("the box runs out of memory")

    def find_room(self, why: str) -> None:
        """Say who may go."""
        names = self._meter.rank(time.monotonic(), self._house.tenants, self._slots.load_s, self._measure)
        if names:
            self._feed(on.RoomFound(names, why))

    def _measure(self, slot: str) -> int:
        stats = self._slots.stats(slot)
        return stats.memory_bytes if stats else 0


def read_memory_left(reserve_bytes: int, proc: Path = Path("/proc")) -> int:
    """Bytes of memory above *reserve_bytes* (0: a twentieth of it); below 0 also where it is waited for too often."""
    sizes = {
        name: int(rest.split()[0]) << 10
        for name, _, rest in (line.partition(":") for line in (proc / "meminfo").read_text().splitlines())
        if name in ("MemTotal", "MemAvailable")
    }
    left = sizes["MemAvailable"] - (reserve_bytes or int(sizes["MemTotal"] * _RESERVE))
    try:
        pressure = (proc / "pressure/memory").read_text()
    except OSError:  # a kernel without PSI, or one where it is switched off
        return left
    return min(left, -1) if float(pressure.partition("avg10=")[2].split()[0]) > _PRESSURE else left


def _needed(pulse: _Pulse, activity: Activity | None, now_s: float, serving: int) -> deque[tuple[float, int]]:
    """How many slots were needed when, of late. *serving* of them are there, and cannot have been busier than always.

    A call is counted when it ends: one that took ten seconds says nothing of the second in which it did.
    """
    took_s = now_s - pulse.looked_s
    slots = 0
    if activity is not None:
        busy_us = max(0, activity.busy_us - pulse.busy_us) if pulse.busy_us else 0
        pulse.busy_us = activity.busy_us
        if took_s > 0:
            busy = min(busy_us / took_s / 1e6, serving)
            slots = ceil((busy + activity.backlog_us / 1e6 / _HORIZON_S) / _USE)
            if not activity.crowded:  # one caller after another, however busy: each found a worker that was free
                slots = min(slots, serving)
    pulse.needed.append((now_s, slots))
    while pulse.needed[0][0] < now_s - _KEEP_S:
        pulse.needed.popleft()
    return pulse.needed


def _fit(tenant: Tenant, needed: deque[tuple[float, int]]) -> list[on.Stimulus]:
    """More slots at once where they are needed, fewer where that many have not been needed for a while."""
    _, now = needed[-1]
    peak = max(slots for _, slots in needed)
    is_known = needed[-1][0] - needed[0][0] >= _KEEP_S - LOOK_S
    if now > tenant.target or (is_known and peak < tenant.target):
        return [on.TenantLoad(tenant.name, max(now, peak, 1))]
    return []
