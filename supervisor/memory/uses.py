"""Whose a process on a GPU is, and what that comes to. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from bedsit.supervisor.devices.model import Box, Process
from bedsit.supervisor.memory.kinds import ORDER, Held
from bedsit.supervisor.needs import find_slice
from bedsit.supervisor.placement.seating import Seat


@dataclass(frozen=True)
class Part:
    """A tenant's memory of a GPU: who holds it to that, what all its slots use, and what each of *slots* may."""

    held: Held
    used_bytes: int
    limit_bytes: int
    slots: int


def sum_by_slot(processes: Iterable[Process], members: Mapping[str, Collection[int]]) -> dict[str, int]:
    """Bytes that each slot's processes use, without those of nobody here, and without what the driver does not tell."""
    owners = {pid: slot for slot, pids in members.items() for pid in pids}
    used = dict.fromkeys(members, 0)
    for each in processes:
        if each.pid in owners:
            used[owners[each.pid]] += each.memory_bytes or 0
    return used


def measure(seat: Seat, box: Box, held: Collection[Held], members: Mapping[str, Collection[int]]) -> Part | None:
    """What a tenant on *seat* has; *held*: its slots' kinds, *members*: their processes. None of a seat on cores.

    Of several kinds the weakest counts. Without a slot it is what the next one would have.
    """
    gpu = next((gpu for gpu in box.gpus if gpu.uuid == seat.devices[0]), None)
    if seat.cores:
        return None
    used = sum(sum_by_slot(gpu.processes, members).values()) if gpu else 0
    if not seat.is_shared:
        part = find_slice(seat, gpu) if gpu else None
        return Part("hardware", used, part.memory_bytes if part else 0, 1)
    usual: Held = "driver" if gpu and "memory_limits" in gpu.capabilities else "soft"
    return Part(max(held, key=ORDER.index, default=usual), used, seat.slot_bytes, max(1, len(members)))
