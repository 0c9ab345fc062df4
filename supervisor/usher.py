"""Takes tenants to their seats: what is known of devices and tenants goes to placement, and what it finds comes back.

A seat is written down with its tenant and kept: nobody is moved, whatever comes and goes, until its operator asks for
something else. It is taken until the last slot on it has ended, whoever it belongs to by then.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.cgroup.cores import parse_cores
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.config import DeviceSettings
from bedsit.supervisor.devices.model import Box
from bedsit.supervisor.devices.watch import Devices
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.needs import Needs, NotYetSeen, needs_of, needs_of_device
from bedsit.supervisor.placement.cards import find_place, list_cards, list_nodes
from bedsit.supervisor.placement.explain import Explanation, explain, explain_seat
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import Rules
from bedsit.supervisor.placement.seating import Resident, Seat, Seating
from bedsit.supervisor.placement.seats import find_seats
from bedsit.supervisor.records import Record
from bedsit.supervisor.registry import NewTenant, Registry, TenantRow
from bedsit.supervisor.slots import Slots
from bedsit.supervisor.wish import read_wish

#: How long somebody who wants a seat on a GPU waits for the first look at the GPUs.
FIRST_LOOK_S: Final = 5.0
Row = TypeVar("Row", TenantRow, NewTenant)


@dataclass(frozen=True)
class Usher:
    """Finds seats, and says which of them cannot be used."""

    registry: Registry
    devices: Devices
    house: House
    slots: Slots
    settings: DeviceSettings
    feed: Callable[[on.Stimulus], None]
    #: What a context takes of each GPU, as far as that was measured.
    contexts: Mapping[str, int] = field(default_factory=dict)

    @property
    def rules(self) -> Rules:
        """How its operator wants tenants to be placed."""
        return Rules(self.settings.order, self.settings.share_factors, self.settings.memory_factor)

    async def read(self, row: TenantRow | NewTenant) -> Request | None:
        """What the tenant asks for, once what there is has been looked at. Raises ``device.invalid``."""
        request = read_wish(row)
        if request is not None and request.wants_gpu:
            await self.devices.wait_looked(FIRST_LOOK_S)
        names = {name for card in list_cards(self.devices.box) if card.table for name in card.table.names}
        return read_wish(row, sorted(names))

    def seat(self, row: Row, old: TenantRow | None = None, *, is_asked: bool = True) -> Row:
        """The tenant with a seat for what it asks for: its *old* one where that is as good. Does not wait.

        A seat that cannot be used is left for another one only where that *is_asked* for. Raises ``device.full``, with
        why and what would help.
        """
        request = read_wish(row)
        if request is None:
            return replace(row, seat=None)
        if old is not None and old.seat is not None and read_wish(old) == request:
            may_go = is_asked and self.house.tenants[old.name].hold == "degraded"
            if not may_go:
                return replace(row, seat=old.seat)
        explanation = self.explain(row, request, old.seat if old else None)
        if explanation.seat is None:
            raise error("device.full", explanation.sentence, "see: bedsit tenant explain, bedsit device list")
        return replace(row, seat=explanation.seat)

    def explain(self, row: TenantRow | NewTenant, request: Request, kept: Seat | None = None) -> Explanation:
        """What seat the tenant would get for *request*, and why: where it sits already, if that is as good."""
        seating = self.seating(without=row.name)
        found = find_seats(seating, row.name, request, self.rules).seats
        same = [seat for seat in found if kept and (seat.devices, seat.placed) == (kept.devices, kept.placed)]
        if kept is not None and (kept in found or same):
            return explain_seat(seating, row.name, request, kept if kept in found else same[0], self.rules)
        return explain(seating, row.name, request, self.rules)

    def explain_kept(self, row: TenantRow, request: Request, seat: Seat) -> Explanation:
        """Why the tenant has the seat that it has."""
        return explain_seat(self.seating(without=row.name), row.name, request, seat, self.rules)

    def seating(self, without: str = "") -> Seating:
        """Who sits where now, but for one tenant."""
        box = self.devices.box
        pinned = {
            row.name: parse_cores(row.cores)
            for row in self.registry.tenants()
            if row.cores != NewTenant.cores and row.name != without
        }
        cards, nodes = tuple(list_cards(box, self.contexts)), tuple(list_nodes(box, pinned))
        return Seating(cards, nodes, tuple(self._residents(without)))

    async def find_needs(self, device: str) -> Needs:
        """What a slot needs that is born for this device, once what there is has been looked at.

        Raises ``device.degraded`` where it cannot be had.
        """
        await self.devices.wait_looked(FIRST_LOOK_S)
        return needs_of_device(device, self.devices.box)

    def slot_stuck(self, record: Record) -> None:
        """That slot cannot be ended: nobody new is put on its device until it has."""
        seat = record.seat
        if seat is not None and (seat.is_shared or not seat.cores):
            self.devices.stick(record.slot, _find_device(seat, self.devices.box))

    def look(self) -> None:
        """Tell the lifecycle whose seat can be used, and whose cannot."""
        box = self.devices.box
        for row in self.registry.seated():
            tenant = self.house.tenants.get(row.name)
            if tenant is None or row.seat is None:
                continue
            seen = _judge(row.name, row.seat, box)
            if (seen.state, seen.why) != (tenant.hold, tenant.trouble):
                self.feed(seen)

    def _residents(self, without: str) -> Iterator[Resident]:
        """Those who have a seat, and those whose slot has not left theirs yet."""
        seated = {row.name: row for row in self.registry.seated()}
        for row in seated.values():
            request = read_wish(row)
            if row.name != without and row.seat is not None and request is not None:
                yield Resident(row.name, request, row.seat)
        running = [*(live.record for live in self.slots.live.values()), *self.slots.ending.values()]
        known = {(row.name, row.seat) for row in seated.values()}
        for name, seat in {(record.tenant or "", record.seat) for record in running} - known:
            # Cores are taken from a slot at once, devices are not.
            if seat is not None and not seat.cores and name != without:
                yield Resident(name, _describe_leaving(seat), seat)


def _find_device(seat: Seat, box: Box) -> str:
    """The device of a seat, by the name that it has in the inventory."""
    gpus = [gpu for gpu in box.gpus if seat.placed is not None and gpu.uuid in seat.devices]
    return next(
        (part.id for gpu in gpus for part in gpu.slices if find_place(part, gpu) == seat.placed), seat.devices[0]
    )


def _describe_leaving(seat: Seat) -> Request:
    """What somebody has who is about to go: memory and place, but no time."""
    if seat.placed is not None:
        return Request("mig", profile=seat.placed.profile)
    return Request("timeslice" if seat.is_shared else "exclusive")


def _judge(name: str, seat: Seat, box: Box) -> on.SeatSeen:
    try:
        needs_of(seat, box)
    except NotYetSeen as e:
        return on.SeatSeen(name, "unseen", e.message)
    except BedsitError as e:
        return on.SeatSeen(name, "degraded", f"{e.message} ({e.hint})")
    return on.SeatSeen(name, "", "")
