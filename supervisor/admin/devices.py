"""device.*: what the box computes with, as it was seen last."""

from typing import Any, Final

from bedsit.ipc.errors import error
from bedsit.supervisor.admin import schema
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.admin.seats import occupy, view_memory
from bedsit.supervisor.desk import Desk
from bedsit.supervisor.devices.model import Box, Gpu, Slice, Trouble

#: How long a new daemon may take for its first look; the driver may have to wake up its cards.
_FIRST_LOOK_S: Final = 5.0


async def list_all(desk: Desk, _request: schema.DeviceList, _call: Call) -> dict[str, Any]:
    """What can be handed out, GPUs first; and GPUs of which nothing can be. *trouble*: why there are none."""
    is_looked_at = await desk.devices.wait_looked(_FIRST_LOOK_S)
    box = desk.devices.box
    seated = occupy(desk, box)
    rows = [row | seated.get(row["id"], {}) for row in _rows(box)]
    return {"devices": rows, "driver": box.driver, "looked": is_looked_at, "trouble": _trouble(box.trouble)}


async def show(desk: Desk, request: schema.DeviceShow, _call: Call) -> dict[str, Any]:
    """One of these, or a GPU that is cut, with all that is known. Raises ``device.not_found``, ``request.invalid``."""
    await desk.devices.wait_looked(_FIRST_LOOK_S)
    box = desk.devices.box
    name = _find(request.name, box)
    gpu = next((gpu for gpu in box.gpus if name == gpu.uuid or any(name == part.id for part in gpu.slices)), None)
    part = next((part for part in box.slices if part.id == name), None)
    row = _row(part) if part is not None else _bare_row(gpu) if gpu is not None else {}
    seated = occupy(desk, box).get(name, {})
    memory = [
        {"tenant": each.name, **held}
        for each in desk.registry.seated()
        if each.name in seated.get("tenants", ()) and (held := view_memory(desk, each)) is not None
    ]
    return {**row, **seated, "tenants_memory": memory, "gpu_details": _gpu(gpu) if gpu is not None else None}


def summarise(desk: Desk) -> dict[str, Any]:
    """The numbers for ``status``."""
    box = desk.devices.box
    seated = [desk.house.tenants[row.name] for row in desk.registry.seated()]
    broken = []
    for gpu in box.gpus:  # a GPU that fails is named, and not all of its parts
        broken += [gpu.uuid] if gpu.trouble else [part.id for part in gpu.slices if part.trouble]
    broken += [part.id for part in box.shared if part.trouble]
    return {
        "gpus": len(box.gpus),
        "mig": sum(part.kind == "mig" for part in box.slices),
        "cores": sum(len(part.cores) for part in (*box.shared, *box.cpus)),
        "shared": sorted(part.id for part in box.shared),
        "seats": len(seated),
        "seats_degraded": [tenant.name for tenant in seated if tenant.hold == "degraded"],
        "degraded": broken,
        "driver": box.driver,
        "trouble": _trouble(box.trouble),
    }


def _rows(box: Box) -> list[dict[str, Any]]:
    rows = []
    for gpu in box.gpus:
        rows += [_row(part) for part in gpu.slices] or [_bare_row(gpu)]
    return rows + [_row(part) for part in (*box.shared, *box.cpus)]


def _find(name: str, box: Box) -> str:
    """The device of that name, or the only one whose name begins so."""
    known = {*(gpu.uuid for gpu in box.gpus), *(part.id for part in box.slices)}
    if name in known:
        return name
    found = sorted(each for each in known if each.startswith(name))
    if len(found) > 1:
        raise error("request.invalid", f"{name!r} may be {', '.join(found[:4])}", "write more of it")
    if not found:
        raise error("device.not_found", f"no device {name!r}", "those there are: bedsit device list")
    return found[0]


def _row(part: Slice) -> dict[str, Any]:
    return {
        "id": part.id,
        "kind": part.kind,
        "state": "degraded" if part.trouble else "ok",
        "name": part.name,
        "memory_bytes": part.memory_bytes,
        "sms": part.sms,
        "cores": list(part.cores),
        "cpuset": part.cpuset or None,
        "numa_node": part.numa_node,
        "trust": part.trust,
        "fault_domain": part.fault_domain,
        "gpu": part.gpu,
        "minor": part.minor,
        "profile": part.profile,
        "placement": {"start": part.placement.start, "size": part.placement.size} if part.placement else None,
        "gpu_instance": part.gpu_instance,
        "compute_instance": part.compute_instance,
        "nodes": list(part.nodes),
        "env": dict(part.env),
        "capabilities": list(part.capabilities),
        "trouble": _trouble(part.trouble),
    }


def _bare_row(gpu: Gpu) -> dict[str, Any]:
    """A GPU of which nothing can be handed out as it is: cut into parts, about to be, or never read."""
    return {
        "id": gpu.uuid,
        "kind": None,
        "state": "degraded" if gpu.trouble else "ok",
        "name": gpu.name or None,
        "memory_bytes": gpu.memory_bytes or None,
        "sms": gpu.sms,
        "fault_domain": gpu.uuid,
        "gpu": gpu.uuid,
        "minor": gpu.minor,
        "numa_node": gpu.numa_node,
        "capabilities": list(gpu.capabilities),
        "note": gpu.note or None,
        "trouble": _trouble(gpu.trouble),
    }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    return {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name or None,
        "pci": gpu.pci or None,
        "memory_bytes": gpu.memory_bytes or None,
        "sms": gpu.sms,
        "mig": gpu.mig,
        "capabilities": list(gpu.capabilities),
        "slices": [part.id for part in gpu.slices],
        "profiles": [
            {
                "id": each.id,
                "name": each.name,
                "slices": each.slices,
                "memory_bytes": each.memory_bytes,
                "sms": each.sms,
                "count_max": each.count_max,
                "placements": [[place.start, place.size] for place in each.placements],
            }
            for each in gpu.profiles
        ],
        "processes": [
            {"pid": each.pid, "memory_bytes": each.memory_bytes, "gpu_instance": each.gpu_instance}
            for each in gpu.processes
        ],
        "note": gpu.note or None,
        "trouble": _trouble(gpu.trouble),
    }


def _trouble(trouble: Trouble | None) -> dict[str, str] | None:
    return None if trouble is None else {"what": trouble.what, "mend": trouble.mend}
