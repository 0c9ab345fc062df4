"""What is asked of the box as a whole: ping, status, ps, down."""

import asyncio
import os
import time
from typing import Any, Final

import bedsit
from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.admin import devices, schema, tenants
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.control import Traffic
from bedsit.supervisor.desk import Desk
from bedsit.supervisor.protocols import PROTOCOLS

_STATS_S: Final = 0.5


async def ping(desk: Desk, _request: schema.Ping, _call: Call) -> dict[str, Any]:
    """Who is there."""
    zygote = desk.zygotes.current
    return {
        "version": bedsit.__version__,
        "protocols": dict(PROTOCOLS),
        "pid": os.getpid(),
        "uptime_s": time.monotonic() - desk.started_at,
        "router_pid": desk.control.router_pid,
        "zygote_pid": zygote.pid if zygote else None,
    }


async def status(desk: Desk, request: schema.Status, _call: Call) -> dict[str, Any]:
    """How everything is; walls are the worst over all slots, and each tenant has its own."""
    if request.inspect:
        await _inspect_all(desk)
    zygote = desk.zygotes.current
    counts = desk.house.statistics()
    return {
        "version": bedsit.__version__,
        "pid": os.getpid(),
        "uptime_s": time.monotonic() - desk.started_at,
        "run_dir": str(desk.folders.run),
        "state_dir": str(desk.folders.state),
        "cgroup": {"limits": desk.room.backend.limits_version, "lifecycle": "v2"},
        "pool": {"target": counts.target, "blank": counts.blank, "building": counts.building},
        "zygote": {
            "generation": zygote.generation if zygote else None,
            "pid": zygote.pid if zygote else None,
            "forks": zygote.forks if zygote else 0,
        },
        "router": {
            "connected": desk.control.router_pid is not None,
            "pid": desk.control.router_pid,
            "version": desk.control.router_version,
        },
        "devices": devices.summarise(desk),
        "walls": _worst_walls(desk),
        "tenants": [tenants.view(desk, row) for row in desk.registry.tenants()],
        "events_lost": desk.events.lost,
    }


async def ps(desk: Desk, _request: schema.Ps, _call: Call) -> list[dict[str, Any]]:
    """All slots, with what the kernel and the router counted."""
    traffic = await desk.control.stats(_STATS_S)
    return [_slot_row(desk, slot, traffic) for slot in sorted(desk.house.slots)]


async def down(desk: Desk, _request: schema.Down, call: Call) -> dict[str, Any]:
    """End every slot and everything of ours, then leave."""
    await desk.down(call.progress)
    call.afterwards(desk.leave)
    return {}


def _slot_row(desk: Desk, name: str, traffic: dict[str, Traffic]) -> dict[str, Any]:
    slot = desk.house.slots[name]
    live = desk.slots.live.get(name)
    record = live.record if live else desk.slots.ending.get(name)
    stats = desk.slots.stats(name)
    counted = traffic.get(slot.tenant or "")
    return {
        "slot": name,
        "tenant": slot.tenant,
        "state": slot.state,
        "init_pid": record.init_pid if record else None,
        "worker_pid": record.worker_pid if record else None,
        "memory_bytes": stats.memory_bytes if stats else None,
        "memory_limit_bytes": live.limits.memory_bytes if live else None,
        "cpu_seconds": stats.cpu_usage_s if stats else None,
        "pids": stats.pids if stats else None,
        "started_at": record.started_at if record else None,
        "generation": record.generation if record else None,
        "bedsit": record.bedsit if record else None,
        "wire": record.wire if record else None,
        "requests": counted.requests if counted else None,
        "errors": counted.errors if counted else None,
        "queued": counted.queued if counted else None,
        "in_flight": counted.in_flight if counted else None,
        "last_cause": _last_cause(desk, slot.tenant),
    }


def _last_cause(desk: Desk, tenant: str | None) -> str | None:
    """In one word why the tenant's slot before this one died; None when none did."""
    try:
        return desk.registry.tally(desk.registry.tenant(tenant).number).kind if tenant else None
    except BedsitError:  # deleted, while its slot still drains
        return None


async def _inspect_all(desk: Desk) -> None:
    """Look at every slot, one in a turn of the loop: whoever else asks something does not wait for all of them."""
    for slot in list(desk.slots.live):
        if slot in desk.slots.live:
            desk.slots.inspect(slot)
        await asyncio.sleep(0)


def _worst_walls(desk: Desk) -> dict[str, str]:
    """Per layer "on" only when it is on in every slot."""
    walls: dict[str, str] = {}
    for live in desk.slots.live.values():
        for layer, is_on in live.walls.items():
            if walls.get(layer, "on") == "on":
                walls[layer] = is_on
    return walls
