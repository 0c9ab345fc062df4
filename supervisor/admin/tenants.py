"""tenant.*: create, list, show, set, stop, start, restart, drain, park, delete."""

import asyncio
import time
from dataclasses import replace
from typing import Any, Final

import msgspec

from bedsit.ipc.errors import error
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.admin import schema, seats
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.admin.rolling import roll
from bedsit.supervisor.config import TenantDefaults
from bedsit.supervisor.control import Traffic
from bedsit.supervisor.desk import Desk, now_text, wish_of
from bedsit.supervisor.keys import make_key
from bedsit.supervisor.operations import Manifests
from bedsit.supervisor.registry import ADMISSION, LIMITS, PRESENCE, WISH, NewTenant, TenantRow
from bedsit.supervisor.tenantlogs import remove_logs
from bedsit.supervisor.usher import Row

#: How long a new box may take to measure what a blank slot needs.
_FLOOR_S: Final = 10.0
_STATS_S: Final = 0.5
_DRAIN_LOOK_S: Final = 0.05
_MIB: Final = 1 << 20
_USUAL: Final = TenantDefaults()


async def create(desk: Desk, request: schema.TenantCreate, _call: Call) -> dict[str, Any]:
    """A new tenant; its first key's secret is in this answer and nowhere else."""
    usual = msgspec.structs.asdict(desk.config.tenant)
    new = NewTenant(name=request.name, isolation=request.isolation, profile=request.profile, **usual)
    new = replace(new, **seats.said(request, (*LIMITS, *ADMISSION, *PRESENCE, *WISH)))
    await _check_floor(desk, new.memory_bytes)
    async with desk.locks[request.name]:
        await desk.usher.read(new)
        new = _follow(desk.usher.seat(new), request)
        desk.cores.check(new)
        desk.room.backend.check(desk.cores.limits_of(new))
        key = make_key()
        row = desk.registry.add_tenant(new, key, now_text())
        desk.events.add("tenant.created", _describe(row), row.name)
        desk.tell_house(row)
        await desk.settle()
    return {"tenant": view(desk, row), "key": {"id": key.id, "secret": key.secret}}


async def list_all(desk: Desk, _request: schema.TenantList, _call: Call) -> list[dict[str, Any]]:
    """All tenants by name."""
    return [view(desk, row) for row in desk.registry.tenants()]


async def show(desk: Desk, request: schema.TenantShow, _call: Call) -> dict[str, Any]:
    """One tenant, its slot's walls read anew."""
    row = desk.registry.tenant(request.name)
    for slot in desk.house.tenants[row.name].crew:
        if slot in desk.slots.live:
            desk.slots.inspect(slot)
    return view(desk, row)


async def set_limits(desk: Desk, request: schema.TenantSet, _call: Call) -> dict[str, Any]:
    """Other limits, on running slots and in the router at once; all of them or none.

    Another profile or seat takes fresh slots, each there before the one that it replaces goes. Raises ``device.full``
    where no seat is left, ``device.invalid``, and ``limit.impossible`` when more than the box would be promised, or for
    more slots at least than at most.
    """
    async with desk.locks[request.name]:
        old = desk.registry.tenant(request.name)
        wanted = seats.wish_anew(
            replace(old, **seats.said(request, (*LIMITS, *ADMISSION, *PRESENCE, *WISH, "profile"))), request
        )
        is_told = bool(seats.said(request, (*LIMITS, "service_class", "min_share", "device")))
        if is_told:
            await _check_floor(desk, wanted.memory_bytes)
        await desk.usher.read(wanted)
        wanted = _follow(desk.usher.seat(wanted, old, is_asked=request.device is not None), request)
        limits = desk.cores.limits_of(wanted)
        slots: list[str] = []
        if is_told or wanted.seat != old.seat:  # the kernel need not hear of what the router does
            if request.cores is not None:
                desk.cores.check(wanted)
            desk.room.backend.check(limits)
            slots = [s.id for s in desk.house.slots.values() if s.tenant == old.name and s.id in desk.slots.live]
        desk.registry.check_share(wanted)  # before the kernel, which may not take back what it took
        done: list[str] = []
        try:
            for slot in slots:
                desk.slots.set_limits(slot, limits)
                done.append(slot)
            desk.registry.set_limits(wanted)
        except BaseException:
            for slot in done:
                desk.slots.set_limits(slot, desk.cores.limits_of(old))
            desk.publish()  # its weight beside the others
            raise
        row = desk.registry.tenant(old.name)
        desk.events.add("tenant.changed", _describe(row), row.name)
        if row.profile != old.profile:
            desk.events.add("tenant.changed", f"profile {row.profile}", row.name)
        if row.seat != old.seat:
            desk.events.add("tenant.changed", f"sits on {row.seat or 'no device'}", row.name)
        if any(getattr(row, name) != getattr(old, name) for name in ("profile", *PRESENCE, "seat")):
            desk.tell_house(row)
        desk.publish()
        await desk.settle()
        return view(desk, row)


async def stop(desk: Desk, request: schema.TenantStop, _call: Call) -> dict[str, Any]:
    """No new requests, and no slot once the running ones are answered."""
    async with desk.locks[request.name]:
        row = desk.registry.tenant(request.name)
        if row.wanted != "stopped":
            desk.registry.set_wanted(row.name, "stopped")
            row = desk.registry.tenant(row.name)
            desk.events.add("tenant.stopped", "by its operator", row.name)
        desk.tell_house(row)
        await _wait_without_slots(desk, row.name)
        return view(desk, row)


async def start(desk: Desk, request: schema.TenantStart, _call: Call) -> dict[str, Any]:
    """A slot again, also for one that was parked or given up; answers once it serves.

    Raises ``worker.crashed`` when it does not come up.
    """
    async with desk.locks[request.name]:
        row = desk.registry.tenant(request.name)
        if row.wanted != "running":
            desk.registry.set_wanted(row.name, "running")
            row = desk.registry.tenant(row.name)
            desk.events.add("tenant.started", "by its operator", row.name)
        desk.tell_house(row)
        desk.feed(on.TenantWanted(row.name))
        await _wait_up(desk, row.name)
        await desk.settle()
        return view(desk, row)


async def restart(desk: Desk, request: schema.TenantRestart, call: Call) -> dict[str, Any]:
    """Fresh slots in place of those that it has, without a request lost; of a parked tenant there are none.

    Raises ``tenant.stopped``, what keeps the first from serving, and ``deadline.exceeded`` where others do not come.
    """
    within_s = request.timeout_s or desk.config.load_timeout_s
    async with desk.locks[request.name]:
        row = desk.registry.tenant(request.name)
        if row.wanted != "running":
            raise error("tenant.stopped", f"tenant {row.name!r} is stopped", f"bedsit tenant start {row.name}")
        if desk.house.tenants[row.name].crew:
            await roll(desk, row, wish_of(desk.registry, row).models, _nothing, call, request.timeout_s)
            if not await desk.wait_until(lambda: _is_renewed(desk, row.name), within_s):
                what = f"tenant {row.name!r} has fresh slots, but not as many as before after {within_s:g} s"
                raise error("deadline.exceeded", what, "see: bedsit events")
        else:
            desk.tell_house(row)
            await _wait_up(desk, row.name)
        desk.events.add("tenant.restarted", "by its operator", row.name)
        await desk.settle()
        return view(desk, row)


async def drain(desk: Desk, request: schema.TenantDrain, call: Call) -> dict[str, Any]:
    """Take nothing new, answer what waits, stop. Raises ``deadline.exceeded``, and takes requests again then."""
    within_s = request.timeout_s or desk.config.drain_timeout_s
    async with desk.locks[request.name]:
        row = desk.registry.tenant(request.name)
        desk.publisher.draining.add(row.name)
        try:
            desk.publish()
            await desk.settle()
            call.progress("drain")
            if not await _is_drained(desk, row.name, within_s):
                hint = "wait longer with --timeout, or: bedsit tenant stop"
                raise error("deadline.exceeded", f"tenant {row.name!r} still has requests after {within_s:g} s", hint)
            desk.registry.set_wanted(row.name, "stopped")
        finally:
            desk.publisher.draining.discard(row.name)
            desk.publish()
        row = desk.registry.tenant(row.name)
        desk.events.add("tenant.stopped", "drained by its operator", row.name)
        desk.tell_house(row)
        await _wait_without_slots(desk, row.name)
        return view(desk, row)


async def park(desk: Desk, request: schema.TenantPark, _call: Call) -> dict[str, Any]:
    """No slot until the next request. Raises ``tenant.busy`` where its policy keeps some, or one has just come."""
    async with desk.locks[request.name]:
        row = desk.registry.tenant(request.name)
        tenant = desk.house.tenants[row.name]
        if tenant.crew and not tenant.can_park:
            why = f"it keeps {row.min_slots}" if row.min_slots else "one has just come, or is about to"
            raise error("tenant.busy", f"tenant {row.name!r} keeps its slots: {why}", "see: bedsit tenant show")
        desk.feed(on.TenantIdle(row.name))
        await _wait_without_slots(desk, row.name)
        return view(desk, row)


async def delete(desk: Desk, request: schema.TenantDelete, _call: Call) -> dict[str, Any]:
    """Forget the tenant; answers once nothing of it runs."""
    async with desk.locks[request.name]:
        row = desk.registry.tenant(request.name)
        desk.books.part_with(row)
        desk.registry.delete_tenant(row.name)
        desk.feed(on.TenantGone(row.name))
        await _wait_without_slots(desk, row.name)
        await desk.slots.wait_idle()
        remove_logs(desk.folders.logs / row.name)
        desk.collect_artifacts()
        desk.events.add("tenant.deleted", "with its keys, models and output", row.name)
        await desk.settle()
    return {}


def view(desk: Desk, row: TenantRow) -> dict[str, Any]:
    """A tenant as the API shows it, with its walls as they were seen last."""
    tenant = desk.house.tenants[row.name]
    first = next(iter(tenant.crew), None)
    live = desk.slots.live.get(first or "")
    record = live.record if live else None
    tally = desk.registry.tally(row.number)
    return {
        "name": row.name,
        "number": row.number,
        "state": desk.house.tenant_state(row.name),
        "limits": {name: getattr(row, name) for name in (*LIMITS, *ADMISSION, *PRESENCE)},
        **seats.view(desk, row),
        "isolation": row.isolation,
        "profile": row.profile,
        "slot": first,
        "slots": list(tenant.crew),
        "slots_serving": len(tenant.serving),
        "slots_wanted": tenant.wanted,
        "worker_pid": record.worker_pid if record else None,
        "slot_started_at": record.started_at if record else None,
        "assigned_at": record.assigned_at if record else None,
        "models": desk.registry.count_models(row.number),
        "restarts": tally.restarts,
        "last_cause": tally.cause,
        "last_cause_kind": tally.kind,
        "created_at": row.created_at,
        "walls": live.walls if live else None,
        "walls_age_s": time.monotonic() - live.walls_read_at if live and live.walls_read_at is not None else None,
    }


def _follow(row: Row, request: schema.TenantCreate | schema.TenantSet) -> Row:
    """The tenant with as much processor time as the cores that it asked for can give, where nobody said how much."""
    if row.seat is None or not row.seat.cores or request.device is None or request.cpus is not None:
        return row
    return replace(row, cpus=float(len(row.seat.cores)))


def _describe(row: TenantRow) -> str:
    """Its limits in one line; of the rarer ones those that were asked for."""
    words = [f"memory {row.memory_bytes // _MIB} MiB", f"{row.cpus:g} cpus", f"{row.pids} pids"]
    words += ["idle"] if row.cpu_idle else []
    words += [f"cpu weight {row.cpu_weight}"] if row.cpu_weight != NewTenant.cpu_weight else []
    words += [f"device {row.device}"] if row.device else []
    words += [f"cores {row.cores}"] if row.cores != NewTenant.cores else []
    words += [f"{row.io_bps / _MIB:g} MiB/s of each disk"] if row.io_bps else []
    words += [row.service_class] if row.service_class != NewTenant.service_class else []
    words += [f"weight {row.weight}"] if row.weight != NewTenant.weight else []
    words += [f"at least {100 * row.min_share:.4g} %"] if row.min_share else []
    words += [f"{row.rate_per_s:.10g} requests/s with bursts of {row.burst}"] if row.rate_per_s else []
    words += [f"{row.concurrency_max} at once"] if row.concurrency_max else []
    words += [f"queue of {row.queue_max}"] if row.queue_max != _USUAL.queue_max else []
    words += [f"queue of {row.queue_bytes_max / _MIB:g} MiB"] if row.queue_bytes_max != _USUAL.queue_bytes_max else []
    usual = (row.min_slots, row.max_slots) == (_USUAL.min_slots, _USUAL.max_slots)
    words += [] if usual else [f"{row.min_slots} to {row.max_slots} slots"]
    words += [f"parked after {row.idle_s:g} s"] if row.idle_s else []
    words += [f"restart {row.restart}"] if row.restart != _USUAL.restart else []
    words += [f"{row.restarts_max} deaths in {row.restart_period_s:g} s"] if row.restarts_max else []
    words += [f"calls of {row.run_max_s:g} s"] if row.run_max_s != _USUAL.run_max_s else []
    words += [f"{row.sessions_max} sessions"] if row.sessions_max != _USUAL.sessions_max else []
    return ", ".join(words)


async def _check_floor(desk: Desk, memory_bytes: int) -> None:
    """Raises ``tenant.limit_too_low``: with less, not even Python starts, and the tenant could never run."""
    if desk.config.pool_size > 0:
        await desk.wait_until(lambda: desk.slots.is_measured, _FLOOR_S)
    floor = desk.slots.floor_bytes
    if memory_bytes < floor:
        least = -(-floor // _MIB)
        what = f"{memory_bytes // _MIB} MiB of memory is less than Python and torch need in a slot"
        raise error("tenant.limit_too_low", what, f"give at least {least} MiB, and what the models need", floor=floor)


async def _wait_up(desk: Desk, name: str) -> None:
    """Wait until the tenant serves, or has no reason to.

    Raises ``worker.crashed``, ``device.degraded``, ``deadline.exceeded``.
    """

    def is_up() -> bool:
        return name not in desk.house.tenants or desk.house.tenant_state(name) != "starting"

    if not await desk.wait_until(is_up, desk.config.load_timeout_s):
        tenant = desk.house.tenants[name]
        why, hint = ("", "see: bedsit events") if tenant.crew else desk.house.explain_wait(tenant)
        raise error("deadline.exceeded", f"tenant {name!r} is still starting{why}", hint)
    if name in desk.house.tenants and desk.house.tenant_state(name) == "degraded":
        what = f"nothing of tenant {name!r} starts: {desk.house.tenants[name].trouble}"
        raise error("device.degraded", what, "see: bedsit device list; it starts when its device is well again")
    if name in desk.house.tenants and desk.house.tenant_state(name) == "failed":
        tenant = desk.house.tenants[name]
        hint = "see: bedsit logs" if tenant.given_up else "it is tried again; see: bedsit logs"
        raise error("worker.crashed", f"tenant {name!r} does not come up: {tenant.cause}", hint)


def _nothing(_manifests: Manifests) -> None:
    """What a restart has to write down."""


def _is_renewed(desk: Desk, name: str) -> bool:
    tenant = desk.house.tenants.get(name)
    return tenant is None or not any(slot.stale for slot in tenant.crew.values())


async def _is_drained(desk: Desk, name: str, within_s: float) -> bool:
    """Wait until the router has no request of this tenant; a router that is away has none, one that is slow may."""
    until_s = time.monotonic() + within_s
    while True:
        traffic = await desk.control.stats(_STATS_S)
        counted = traffic.get(name, Traffic())
        if desk.control.router_pid is None or (traffic and not counted.queued and not counted.in_flight):
            return True
        if time.monotonic() > until_s:
            return False
        await asyncio.sleep(_DRAIN_LOOK_S)


async def _wait_without_slots(desk: Desk, name: str) -> None:
    def is_without() -> bool:
        return all(slot.tenant != name for slot in desk.house.slots.values())

    if not await desk.wait_until(is_without, desk.config.drain_timeout_s + 10):
        raise error("deadline.exceeded", f"tenant {name!r} still has a slot", "see: bedsit ps")
