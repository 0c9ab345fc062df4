"""Where tenants sit, as the API shows it."""

from typing import Any

from bedsit.supervisor.desk import Desk
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.registry import WISH, TenantRow
from bedsit.supervisor.wish import split_names


def view(desk: Desk, row: TenantRow) -> dict[str, Any]:
    """A tenant's wish and seat. *seat_trouble*: why its slots cannot start there, if so."""
    names = {name: split_names(getattr(row, name)) for name in ("near", "apart")}
    return {
        "wish": {name: getattr(row, name) for name in WISH} | names,
        "seat": view_seat(row.seat) if row.seat is not None else None,
        "seat_trouble": desk.house.tenants[row.name].trouble or None,
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
