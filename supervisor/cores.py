"""What a tenant's slots may use of the box, and whose turn it is on a busy processor."""

from contextlib import suppress
from dataclasses import replace
from typing import Final

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import Limits
from bedsit.sandbox.slices import LONGEST_US
from bedsit.supervisor.log import get_log
from bedsit.supervisor.registry import NewTenant, Registry, TenantRow
from bedsit.supervisor.shares import Claim, weigh
from bedsit.supervisor.slots import Slots

#: A realtime tenant gets so much more of a busy processor than its weight says; one of class batch gets what is left.
_REALTIME: Final = 10
_MAX_WEIGHT: Final = 10_000


def limits_of(row: TenantRow | NewTenant) -> Limits:
    """What one slot of the tenant may use. Who gets what is left and was promised a part gets that, by its weight."""
    is_batch = row.service_class == "batch"
    return Limits(
        row.memory_bytes,
        row.pids,
        row.cpus,
        min(_MAX_WEIGHT, row.cpu_weight * (_REALTIME if row.service_class == "realtime" else 1)),
        cpu_idle=(row.cpu_idle or is_batch) and not row.min_share,
        cores=row.cores,
        io_bps=row.io_bps,
        slice_us=LONGEST_US if is_batch else 0,
    )


class Cores:
    """Weighs the slots that there are against each other, where a tenant has a guaranteed part of the processors."""

    def __init__(self, registry: Registry, slots: Slots) -> None:
        self._registry = registry
        self._slots = slots
        self._was_promised = False

    def share(self) -> None:
        """Set the weights that are not as they have to be. Costs one query where nothing was promised to anybody."""
        is_promised = self._registry.has_promised()
        if is_promised or self._was_promised:
            self._weigh()
        self._was_promised = is_promised

    def _weigh(self) -> None:
        rows = self._find_rows()
        own: dict[str, Limits] = {}
        claims: dict[str, Claim] = {}
        for slot, live in self._slots.live.items():
            row = rows.get(live.record.tenant or "")
            if row is not None and not (limits := limits_of(row)).cpu_idle:
                own[slot], claims[slot] = limits, Claim(row.name, limits.cpu_weight, row.min_share)
        for slot, weight in weigh(claims).items():
            limits = replace(own[slot], cpu_weight=weight)
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
