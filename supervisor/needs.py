"""What a worker needs of its tenant's seat, and whether that can be had now. Pure.

This is the one place that knows which device files, variables and cores come with a seat.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.snapshot import ServiceClass
from bedsit.sandbox.cgroup.cores import format_cores
from bedsit.supervisor.devices.model import Box, Gpu, Slice
from bedsit.supervisor.placement.cards import find_place
from bedsit.supervisor.placement.seating import Seat


@dataclass(frozen=True)
class Needs:
    """*device_nodes* to bind into the slot, *env* for its worker, *cores* to keep it on (none: those that are left).

    *turns_on*: the device that it takes turns on; empty where it has what it has for itself.
    """

    device_nodes: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()
    turns_on: str = ""


class NotYetSeen(BedsitError):
    """The seat's device has not been looked at since the daemon came up."""


def needs_of(seat: Seat, box: Box) -> Needs:
    """What a slot on *seat* needs. Raises ``device.degraded`` where it cannot be had, NotYetSeen where nobody knows."""
    turns_on = seat.devices[0] if seat.is_shared else ""
    if seat.cores:
        _check_cores(seat, box)
        return Needs(cores=seat.cores, turns_on=turns_on)
    part = _find_part(seat, box)
    if part.trouble is not None:
        raise _degraded(f"{part.id}: {part.trouble.what}", part.trouble.mend)
    return Needs(device_nodes=part.nodes, env=part.env, turns_on=turns_on)


def needs_of_device(device: str, box: Box) -> Needs:
    """What a slot needs that is born for a GPU or a part of one, by the name that `Seat.device` gives it.

    Raises as `needs_of` does.
    """
    for gpu in box.gpus:
        places = (find_place(part, gpu) for part in gpu.slices)
        for seat in (Seat((gpu.uuid,)), *(Seat((gpu.uuid,), placed=place) for place in places if place)):
            if seat.device == device:
                return needs_of(seat, box)
    raise _degraded(f"{device} is not there", "see: bedsit device list")


def may_doze(seat: Seat | None, service_class: ServiceClass) -> bool:
    """Whether its models leave their device while nobody asks: where others take turns there, and memory is dear."""
    return seat is not None and seat.is_shared and not seat.cores and service_class != "realtime"


def find_slice(seat: Seat, gpu: Gpu) -> Slice | None:
    """What of *gpu* a seat on it is: all of it, or the MIG device at its place, if there is one."""
    if seat.placed is None:
        return gpu.slices[0] if gpu.mig != "on" else None
    return next((part for part in gpu.slices if part.kind == "mig" and find_place(part, gpu) == seat.placed), None)


def _check_cores(seat: Seat, box: Box) -> None:
    """Cores that are shared may not have become others', nor those that are one tenant's shared ones."""
    parts = box.shared if seat.is_shared else box.cpus
    there = {core for part in parts if part.trouble is None for core in part.cores}
    if seat.is_shared:
        part = next((part for part in parts if part.id == seat.devices[0]), None)
        if part is None:
            raise _degraded(f"no cores are shared as {seat.devices[0]}", "see devices.shared_cores, or: tenant set")
        if part.trouble is not None:
            raise _degraded(f"{part.id}: {part.trouble.what}", part.trouble.mend)
        there = set(part.cores)
    missing = frozenset(seat.cores) - there
    if missing:
        hint = "bring them back, or let it ask anew: bedsit tenant set TENANT --device"
        raise _degraded(f"{seat.devices[0]}: the cores {format_cores(missing)} are not there, or are shared", hint)


def _find_part(seat: Seat, box: Box) -> Slice:
    """What of its GPU the seat is on: all of it, or the MIG device at its place."""
    (name,) = seat.devices
    gpu = next((gpu for gpu in box.gpus if gpu.uuid == name), None)
    if gpu is None:
        if box.trouble is not None:
            raise _degraded(f"{name}: {box.trouble.what}", box.trouble.mend)
        if not box.is_counted:
            raise NotYetSeen("device.degraded", f"{name} has not been looked at yet", "the driver takes its time")
        raise _degraded(f"{name} is not among the GPUs that are there", "see: bedsit device list")
    if gpu.trouble is not None:
        raise _degraded(f"{name}: {gpu.trouble.what}", gpu.trouble.mend)
    if seat.placed is None and gpu.mig == "on":
        raise _degraded(f"{name} is cut by MIG now", "turn MIG off, or let the tenant ask for something else")
    part = find_slice(seat, gpu)
    if part is None:
        raise _degraded(f"{name} has no MIG device with {seat.placed}", "make it again (nvidia-smi mig -cgi)")
    return part


def _degraded(what: str, hint: str) -> BedsitError:
    return error("device.degraded", what, hint)
