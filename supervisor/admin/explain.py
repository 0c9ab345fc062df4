"""tenant.explain: why a tenant sits where it does, why its slots do not start, or what a wish would come to."""

from dataclasses import replace
from typing import Any, Final

import msgspec

from bedsit.ipc.errors import error
from bedsit.supervisor.admin import schema
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.admin.seats import said, view_seat, wish_anew
from bedsit.supervisor.desk import Desk
from bedsit.supervisor.placement.explain import Explanation
from bedsit.supervisor.registry import WISH, NewTenant, TenantRow

#: What can be wished for, and what the wish's weight depends on.
_WISH: Final = (*WISH, "service_class", "min_share")
_NEW: Final = "a new tenant"


async def explain(desk: Desk, request: schema.TenantExplain, _call: Call) -> dict[str, Any]:
    """Changes nothing. Raises ``tenant.not_found``, ``device.invalid``, ``request.invalid``."""
    wish = said(request, _WISH)
    if request.name is None:
        if not wish:
            raise error("request.invalid", "neither a tenant nor a device", "name a tenant, or say --device")
        usual = msgspec.structs.asdict(desk.config.tenant)
        return await _explain_wish(desk, NewTenant(name=_NEW, isolation="strict", **usual | wish))
    row = desk.registry.tenant(request.name)
    if wish:
        return await _explain_wish(desk, wish_anew(replace(row, **wish), request), row)
    return await _explain_tenant(desk, row)


async def _explain_wish(desk: Desk, wanted: TenantRow | NewTenant, row: TenantRow | None = None) -> dict[str, Any]:
    """What would happen if this were asked for now."""
    asked = await desk.usher.read(wanted)
    if asked is None:
        return _view(wanted, None, f"{wanted.name} would run on {_say_cores(desk, wanted)}, beside others")
    explanation = desk.usher.explain(wanted, asked, row.seat if row else None)
    return _view(wanted, explanation, explanation.sentence)


async def _explain_tenant(desk: Desk, row: TenantRow) -> dict[str, Any]:
    asked = await desk.usher.read(row)
    start = _explain_start(desk, row.name)
    if asked is None or row.seat is None:
        return _view(
            row, None, f"{row.name} asks for no device: it runs on {_say_cores(desk, row)}, beside others{start}"
        )
    explanation = desk.usher.explain_kept(row, asked, row.seat)
    return _view(row, explanation, explanation.sentence + start)


def _say_cores(desk: Desk, row: TenantRow | NewTenant) -> str:
    """Where a tenant without a seat runs."""
    cores = desk.cores.limits_of(replace(row, seat=None)).cores
    return "all cores" if cores == NewTenant.cores else f"the cores {cores}, that no other tenant has or shares"


def _explain_start(desk: Desk, name: str) -> str:
    """Why no slot of it serves, as the end of a sentence; nothing where some do."""
    tenant, state = desk.house.tenants[name], desk.house.tenant_state(name)
    if state == "degraded":
        return f"; nothing of it starts: {tenant.trouble}"
    if state == "failed":
        return f"; its slots do not come up: {tenant.cause}"
    if state == "starting":
        return f"; its slot is on its way{desk.house.explain_wait(tenant)[0]}"
    return {"stopped": "; it is stopped", "parked": "; it is parked", "empty": "; it has no model yet"}.get(state, "")


def _view(row: TenantRow | NewTenant, explanation: Explanation | None, sentence: str) -> dict[str, Any]:
    found = explanation or Explanation(None, (), (), sentence)
    return {
        "name": row.name if row.name != _NEW else None,
        "device": row.device or None,
        "seat": view_seat(found.seat) if found.seat is not None else None,
        "fits": found.seat is not None or not row.device,
        "sentence": sentence,
        "reasons": [{"device": each.device or None, "code": each.code, "words": each.words} for each in found.reasons],
        "changes": [{"what": each.what, "words": each.words} for each in found.changes],
    }
