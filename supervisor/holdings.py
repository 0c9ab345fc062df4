"""Who has which device alone: whole GPUs and MIG devices, each with its holder or nobody. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bedsit.supervisor.devices.model import Box, Gpu, Slice
from bedsit.supervisor.placement.cards import find_place
from bedsit.supervisor.placement.seating import Resident


@dataclass(frozen=True)
class Holding:
    """A device, the tenant that has it or an empty name, and the device memory that its processes use, in bytes."""

    device: str
    tenant: str = ""
    memory_bytes: int = 0


def list_holdings(box: Box, residents: tuple[Resident, ...], owners: Mapping[int, str]) -> Iterator[Holding]:
    """Every device that nobody takes turns on. *owners*: whose the worker of that process number is."""
    for gpu in box.gpus:
        here = [each for each in residents if gpu.uuid in each.seat.devices]
        if any(each.seat.is_shared for each in here):
            continue  # the router measures that one
        for part in gpu.slices:
            holder = next((each.tenant for each in here if _is_at(each, part, gpu)), "")
            used = sum(
                process.memory_bytes or 0
                for process in gpu.processes
                if owners.get(process.pid) == holder and process.gpu_instance in (None, part.gpu_instance)
            )
            yield Holding(part.id, holder, used if holder else 0)


def _is_at(resident: Resident, part: Slice, gpu: Gpu) -> bool:
    return part.kind != "mig" or resident.seat.placed == find_place(part, gpu)
