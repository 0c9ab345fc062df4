"""Who has which GPU or MIG device alone, and who takes turns on one; with the memory that each uses. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bedsit.supervisor.devices.model import Box, Gpu, Slice
from bedsit.supervisor.placement.cards import find_place
from bedsit.supervisor.placement.seating import Resident


@dataclass(frozen=True)
class Holding:
    """A device, the tenant that has it or an empty name, and the device memory that its processes use, in bytes.

    Where tenants take turns on it, nobody has its time by this: the router measures that.
    """

    device: str
    tenant: str = ""
    memory_bytes: int = 0
    takes_turns: bool = False


def list_holdings(box: Box, residents: tuple[Resident, ...], owners: Mapping[int, str]) -> Iterator[Holding]:
    """Every device but cores. *owners*: whose the worker of that process number is."""
    for gpu in box.gpus:
        here = [each for each in residents if gpu.uuid in each.seat.devices]
        if any(each.seat.is_shared for each in here):
            for tenant in {each.tenant: None for each in here}:  # once, also where it moves from seat to seat
                yield Holding(gpu.uuid, tenant, _sum_memory(gpu, tenant, owners), takes_turns=True)
            continue
        for part in gpu.slices:
            holder = next((each.tenant for each in here if _is_at(each, part, gpu)), "")
            yield Holding(part.id, holder, _sum_memory(gpu, holder, owners, part) if holder else 0)


def _sum_memory(gpu: Gpu, tenant: str, owners: Mapping[int, str], part: Slice | None = None) -> int:
    """Bytes that the tenant's processes use of a GPU, or of one part of it."""
    return sum(
        process.memory_bytes or 0
        for process in gpu.processes
        if owners.get(process.pid) == tenant and (part is None or process.gpu_instance in (None, part.gpu_instance))
    )


def _is_at(resident: Resident, part: Slice, gpu: Gpu) -> bool:
    return part.kind != "mig" or resident.seat.placed == find_place(part, gpu)
