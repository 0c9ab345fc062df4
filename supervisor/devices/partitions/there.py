"""The instances of a GPU as they are there, and who is in them. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bedsit.supervisor.devices.model import Bare, Gpu, Slice
from bedsit.supervisor.devices.reports import MAX_PROCESSES
from bedsit.supervisor.placement.cards import find_place
from bedsit.supervisor.placement.geometry import Placed
from bedsit.supervisor.placement.seating import Resident

#: Which tenants sit at a place of a GPU, whether an instance is there or not.
Seats = Mapping[tuple[str, Placed], tuple[str, ...]]


@dataclass(frozen=True)
class Present:
    """A GPU instance that is there; *device* is the first MIG device in it, and none is where it *is_bare*."""

    placed: Placed
    profile_id: int
    gpu_instance: int
    device: str | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it has no compute instance."""
        return self.device is None


def list_present(gpu: Gpu) -> tuple[Present, ...] | None:
    """The GPU instances, whatever compute instances are in each; None where the driver does not tell their places."""
    found: dict[int, Present] = {}
    every: list[Slice | Bare] = [*(part for part in gpu.slices if part.kind == "mig"), *gpu.bare]
    for each in every:
        place = find_place(each, gpu)
        if place is None or each.profile is None or each.gpu_instance is None:
            return None
        device = each.id if isinstance(each, Slice) else None
        found.setdefault(each.gpu_instance, Present(place, each.profile, each.gpu_instance, device))
    return tuple(sorted(found.values(), key=lambda each: each.placed))


def list_seats(residents: Iterable[Resident]) -> dict[tuple[str, Placed], tuple[str, ...]]:
    """Who of these sits on a part of a GPU, by that."""
    found: dict[tuple[str, Placed], tuple[str, ...]] = {}
    for each in residents:
        if each.seat.placed is not None:
            at = each.seat.devices[0], each.seat.placed
            found[at] = (*found.get(at, ()), each.tenant)
    return found


def find_occupants(gpu: Gpu, seats: Seats) -> dict[int, tuple[str, ...]]:
    """Who is in each GPU instance: tenants by their seats, and processes whoever started them.

    A process of which the driver does not tell where it is may be anywhere, and so may one more than are listed.
    """
    everywhere = [f"process {process.pid}" for process in gpu.processes if process.gpu_instance is None]
    everywhere += ["more processes than are listed"] if len(gpu.processes) >= MAX_PROCESSES else []
    found = {}
    for each in list_present(gpu) or ():
        inside = [f"tenant {tenant}" for tenant in seats.get((gpu.uuid, each.placed), ())]
        inside += [f"process {process.pid}" for process in gpu.processes if process.gpu_instance == each.gpu_instance]
        inside += [] if each.is_bare else everywhere
        if inside:
            found[each.gpu_instance] = tuple(inside)
    return found
