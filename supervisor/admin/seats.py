"""Where tenants sit, as the API shows it, and what they wish."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bedsit.sandbox.cgroup.cores import format_cores
from bedsit.supervisor.admin import schema
from bedsit.supervisor.desk import Desk
from bedsit.supervisor.devices.model import Box, Slice
from bedsit.supervisor.memory.kinds import MEANING
from bedsit.supervisor.memory.uses import measure
from bedsit.supervisor.placement.cards import find_place
from bedsit.supervisor.placement.score import fill
from bedsit.supervisor.placement.seating import Seat, Seating
from bedsit.supervisor.registry import WISH, NewTenant, TenantRow
from bedsit.supervisor.usher import Row
from bedsit.supervisor.wish import split_names


def view(desk: Desk, row: TenantRow) -> dict[str, Any]:
    """A tenant's wish and seat. *seat_trouble*: why its slots cannot start there, if so."""
    names = {name: split_names(getattr(row, name)) for name in ("near", "apart")}
    return {
        "wish": {name: getattr(row, name) for name in WISH} | names,
        "seat": view_seat(row.seat) if row.seat is not None else None,
        "seat_trouble": desk.house.tenants[row.name].trouble or None,
        "gpu_memory": view_memory(desk, row),
    }


def view_memory(desk: Desk, row: TenantRow) -> dict[str, Any] | None:
    """What a tenant uses of its GPU's memory, each of its slots may, and who holds it to that; None of one without."""
    if row.seat is None:
        return None
    live = [live.record for live in desk.slots.live.values() if live.record.tenant == row.name]
    members = {record.slot: desk.room.backend.procs(record.slot) for record in live}
    part = measure(row.seat, desk.devices.box, [record.held for record in live if record.held], members)
    if part is None:
        return None
    return {
        "held": part.held,
        "means": MEANING[part.held],
        "used_bytes": part.used_bytes,
        "limit_bytes": part.limit_bytes,
        "slots": part.slots,
    }


def view_seat(seat: Seat) -> dict[str, Any]:
    """A seat in parts, and as text."""
    place = seat.placed
    return {
        "devices": list(seat.devices),
        "place": {"start": place.start, "size": place.size, "profile": place.profile} if place else None,
        "cores": list(seat.cores),
        "memory_bytes": seat.memory_bytes or None,
        "shared": seat.is_shared,
        "text": str(seat),
    }


def occupy(desk: Desk, box: Box) -> dict[str, dict[str, Any]]:
    """By device: the *tenants* that sit there, and how full it is, 0 to 1 (*used*)."""
    seating = desk.usher.seating()
    full = {use.card.name: fill(use, desk.usher.rules) for use in seating.uses}
    return {part.id: _occupy_part(part, box, seating, full) for part in box.slices}


def said(request: object, names: Iterable[str]) -> dict[str, Any]:
    """Those of *names* that the request says something about."""
    return {name: getattr(request, name) for name in names if getattr(request, name, None) is not None}


def wish_anew(row: Row, request: schema.TenantSet | schema.TenantExplain) -> Row:
    """The tenant without what it wished of its former device and makes no sense for this one."""
    if request.device is None or row.device.startswith(("gpu", "mig:")):
        return row
    lost = ("gpu_memory_bytes", "gpu_type", *(() if row.device else ("near", "apart")))
    return replace(row, **{name: getattr(NewTenant, name) for name in lost if getattr(request, name) is None})


def _occupy_part(part: Slice, box: Box, seating: Seating, full: dict[str, float]) -> dict[str, Any]:
    if part.kind == "mig":
        gpu = next(gpu for gpu in box.gpus if gpu.uuid == part.gpu)
        place = find_place(part, gpu)
        tenants = [r.tenant for r in seating.residents if r.seat.devices == (gpu.uuid,) and r.seat.placed == place]
        return {"tenants": tenants if place else [], "used": float(bool(place and tenants))}
    here = [each for each in seating.residents if part.id in each.seat.devices]
    if part.kind == "cpu":
        taken = frozenset(core for each in here for core in each.seat.cores).intersection(part.cores)
        given = {"given": format_cores(taken) or None}
        return {"tenants": [each.tenant for each in here], "used": len(taken) / len(part.cores), **given}
    return {"tenants": [each.tenant for each in here], "used": full.get(part.id, 0.0)}
