"""What a tenant's slots may use of the box, and whose turn it is on a busy processor."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.cgroup import Limits
from bedsit.sandbox.cgroup.cores import ALL, format_cores, parse_cores
from bedsit.sandbox.slices import LONGEST_US
from bedsit.supervisor.devices.model import Box
from bedsit.supervisor.devices.watch import Devices
from bedsit.supervisor.log import get_log
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.registry import NewTenant, Registry, TenantRow
from bedsit.supervisor.shares import Claim, weigh
from bedsit.supervisor.slots import Slots

#: A realtime tenant gets so much more of a busy processor than its weight says; one of class batch gets what is left.
_REALTIME: Final = 10
_MAX_WEIGHT: Final = 10_000


def limits_of(row: TenantRow | NewTenant, left: str = ALL) -> Limits:
    """What one slot of the tenant may use. Who gets what is left and was promised a part gets that, by its weight.

    It runs on the cores of its seat; without one on its own of those that are *left* by tenants that have one.
    """
    is_batch = row.service_class == "batch"
    return Limits(
        row.memory_bytes,
        row.pids,
        row.cpus,
        min(_MAX_WEIGHT, row.cpu_weight * (_REALTIME if row.service_class == "realtime" else 1)),
        cpu_idle=(row.cpu_idle or is_batch) and not row.min_share,
        cores=_choose_cores(row, left),
        io_bps=row.io_bps,
        slice_us=LONGEST_US if is_batch else 0,
    )


def find_left(box: Box, seats: Iterable[Seat]) -> str:
    """The cores of tenants that have none of their own: not shared, not given away. There are always some."""
    given = {core for seat in seats if not seat.is_shared for core in seat.cores}
    usual = frozenset(core for part in box.cpus for core in part.cores)
    return format_cores(usual - given or usual) if box.shared or given else ALL


def _choose_cores(row: TenantRow | NewTenant, left: str) -> str:
    if row.seat is not None and row.seat.cores:
        return format_cores(frozenset(row.seat.cores))
    if ALL in (row.cores, left):
        return left if row.cores == ALL else row.cores
    return format_cores(parse_cores(row.cores) & parse_cores(left)) or left


class Cores:
    """Keeps slots on the cores that are their tenants', and weighs them where a part of the processors is promised."""

    def __init__(self, registry: Registry, slots: Slots, devices: Devices) -> None:
        self._registry = registry
        self._slots = slots
        self._devices = devices
        self._was_promised = False
        self._was_left = ALL
        self._seats: Sequence[Seat] = ()
        self._revision = 0

    def limits_of(self, row: TenantRow | NewTenant) -> Limits:
        """What one slot of the tenant may use now."""
        return limits_of(row, self.left)

    def check(self, row: TenantRow | NewTenant) -> None:
        """Raises ``limit.impossible`` for cores that other tenants have, or take turns on."""
        left = self.left
        if ALL in (row.cores, left):
            return
        taken = parse_cores(row.cores) - parse_cores(left)
        if taken:
            what = f"the cores {format_cores(taken)} are shared, or some tenant has them for itself"
            raise error("limit.impossible", what, f"those that are left are {left}; who has which: bedsit device list")

    def share(self) -> None:
        """Set the limits that are not as they have to be. Costs a query where nothing was promised to anybody."""
        is_promised, left = self._registry.has_promised(), self.left
        if is_promised or self._was_promised or left != self._was_left:
            self._weigh()
        self._was_promised, self._was_left = is_promised, left

    @property
    def left(self) -> str:
        """The cores of tenants that have none of their own."""
        if self._revision != self._registry.revision:
            self._revision = self._registry.revision
            self._seats = [row.seat for row in self._registry.seated() if row.seat is not None]
        return find_left(self._devices.box, self._seats)

    def _weigh(self) -> None:
        rows, left = self._find_rows(), self.left
        own: dict[str, Limits] = {}
        claims: dict[str, Claim] = {}
        for slot, live in self._slots.live.items():
            row = rows.get(live.record.tenant or "")
            if row is not None:
                own[slot] = limits_of(row, left)
                if not own[slot].cpu_idle:
                    claims[slot] = Claim(row.name, own[slot].cpu_weight, 0.0 if row.device else row.min_share)
        weights = weigh(claims)
        for slot, usual in own.items():
            limits = replace(usual, cpu_weight=weights.get(slot, usual.cpu_weight))
            if limits != self._slots.live[slot].limits:
                try:
                    self._slots.set_limits(slot, limits)
                except BedsitError as e:  # it ends, and its group with it
                    get_log().warning("shares.refused", slot=slot, error=str(e))

    def _find_rows(self) -> dict[str, TenantRow]:
        rows = {}
        for name in {live.record.tenant for live in self._slots.live.values() if live.record.tenant}:
            with suppress(BedsitError):  # deleted meanwhile
                rows[name] = self._registry.tenant(name)
        return rows
