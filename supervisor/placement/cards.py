"""What there is to sit on, of what the box was seen to have. Pure.

Of a GPU that is there the driver's own profiles and places count. Where MIG is on, seats are on instances that exist.
"""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from bedsit.sandbox.cgroup.cores import format_cores
from bedsit.supervisor.devices.model import Bare, Box, Gpu, Slice
from bedsit.supervisor.placement.geometry import Placed
from bedsit.supervisor.placement.profiles import Profile, Table
from bedsit.supervisor.placement.seating import CONTEXT_BYTES, Card, Node


def list_cards(box: Box, contexts: Mapping[str, int] = MappingProxyType({})) -> Iterator[Card]:
    """GPUs, whole or cut, and cores that tenants take turns on, by the names that they keep.

    *contexts*: what a context takes of them, where that was measured.
    """
    for gpu in box.gpus:
        yield _make_card(gpu, contexts.get(gpu.uuid, CONTEXT_BYTES))
    for part in box.shared:
        yield Card(part.id, part.name, 0, cores=part.cores, trouble=part.trouble.what if part.trouble else "")


def list_nodes(box: Box, pinned: Mapping[str, Collection[int]]) -> Iterator[Node]:
    """The cores that may be given away: all but the first of the box, and those that tenants are *pinned* to."""
    first = min(core for part in box.cpus for core in part.cores)
    for part in box.cpus:
        notes = [f"core {first} is everybody's"] if first in part.cores else []
        left = set(part.cores) - {first}
        for tenant, cores in sorted(pinned.items()):
            held = frozenset(left.intersection(cores))
            if held:
                notes.append(f"{format_cores(held)} is in --cores of {tenant}")
                left -= held
        yield Node(part.id, tuple(sorted(left)), ", ".join(notes))


def find_place(part: Slice | Bare, gpu: Gpu) -> Placed | None:
    """Where a MIG device lies, by the name of its profile; None where the driver did not say."""
    profile = next((each.name for each in gpu.profiles if each.id == part.profile), None)
    if part.placement is None or profile is None:
        return None
    return Placed(part.placement.start, part.placement.size, name_profile(profile))


def _make_card(gpu: Gpu, context_bytes: int) -> Card:
    table = make_table(gpu)
    is_cut = gpu.mig == "on"
    places = {part.id: place for part in gpu.slices if (place := find_place(part, gpu)) is not None} if is_cut else {}
    troubles = {part.id: part.trouble.what for part in gpu.slices if part.trouble is not None}
    return Card(
        name=gpu.uuid,
        model=gpu.name,
        memory_bytes=gpu.memory_bytes,
        table=table if is_cut else None,
        declared=tuple(sorted({place for part, place in places.items() if part not in troubles})) if is_cut else None,
        context_bytes=context_bytes,
        possible=table,
        trouble=gpu.trouble.what if gpu.trouble else "",
        broken=tuple((place, troubles[part]) for part, place in places.items() if part in troubles),
    )


def make_table(gpu: Gpu) -> Table | None:
    """The driver's profiles, smallest first; a MIG GPU that tells none has none. None where it cannot be cut."""
    profiles = [
        Profile(
            name_profile(each.name),
            each.memory_bytes,
            each.placements[0].size,
            tuple(sorted(place.start for place in each.placements)),
            each.count_max,
        )
        for each in gpu.profiles
        if each.placements
    ]
    if not profiles and gpu.mig != "on":
        return None
    slots = max((start + each.size for each in profiles for start in each.starts), default=0)
    return Table(slots, tuple(sorted(profiles, key=lambda each: (each.size, each.memory_bytes, each.name))))


def name_profile(profile: str) -> str:
    """As it is asked for: NVML writes ``MIG 1g.10gb``."""
    return profile.removeprefix("MIG ")
