"""Whether a new set of models may come in now. Pure: a part of the lifecycle's judgement."""

from collections.abc import Collection, Iterable

from bedsit.ipc.errors import BedsitError, error
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.tenancy import Limits, Slot, Tenant


def judge_roll(tenant: Tenant | None, ask: on.RollAsked, *, is_open: bool) -> BedsitError | None:
    """Why *tenant* cannot take what is asked for, or None."""
    if tenant is None:
        return error("tenant.not_found", f"no tenant {ask.tenant!r}")
    if not is_open:
        return error("daemon.unavailable", "the daemon is not ready or is going down")
    if not tenant.running:
        hint = f"start it with: bedsit tenant start {ask.tenant}"
        return error("tenant.stopped", f"tenant {ask.tenant!r} is stopped", hint)
    if tenant.hold and ask.models:
        return error(
            "device.degraded", f"the device of tenant {ask.tenant!r}: {tenant.trouble}", "see: bedsit device list"
        )
    if tenant.roll:
        return error("tenant.busy", f"another deployment of tenant {ask.tenant!r} is under way", "try again later")
    return None


def judge_room(
    ask: on.RollAsked, slots: Collection[Slot], waiting: int, limits: Limits, tenants: Iterable[Tenant]
) -> BedsitError | None:
    """Why the box has no slot for what is asked for, or None; blank slots are room, and so is who may be parked."""
    taken = sum(slot.state in ("loading", "serving", "draining") for slot in slots)
    may_go = any(tenant.crew and tenant.policy.min_slots == 0 for tenant in tenants)
    if ask.models and taken + waiting >= limits.max_slots and not may_go:
        hint = "stop or delete a tenant, or raise max_slots"
        return error("pool.empty", f"all {limits.max_slots} slots of this box are in use", hint)
    return None
