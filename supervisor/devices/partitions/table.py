"""A GPU as the search for geometries wants it: the driver's own profiles and places, and what there is. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from bedsit.supervisor.devices.model import Gpu
from bedsit.supervisor.devices.model import Profile as DriversProfile
from bedsit.supervisor.devices.reports import MAX_PROCESSES
from bedsit.supervisor.placement.geometry import Placed
from bedsit.supervisor.placement.profiles import Profile, Table


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


def make_table(gpu: Gpu) -> Table:
    """What its driver says that it can be cut into."""
    profiles = [
        Profile(
            name_profile(each),
            each.memory_bytes,
            each.placements[0].size,
            tuple(sorted(place.start for place in each.placements)),
            each.count_max,
        )
        for each in gpu.profiles
        if each.placements
    ]
    slots = max((profile.starts[-1] + profile.size for profile in profiles), default=0)
    return Table(slots, tuple(sorted(profiles, key=lambda profile: (profile.size, profile.memory_bytes, profile.name))))


def name_profile(profile: DriversProfile) -> str:
    """``MIG 3g.40gb`` as people write it."""
    return profile.name.removeprefix("MIG ")


def list_present(gpu: Gpu) -> tuple[Present, ...] | None:
    """The GPU instances, whatever compute instances are in each; None where the driver does not tell their places."""
    names = {each.id: name_profile(each) for each in gpu.profiles}
    found: dict[int, Present] = {}
    for part in gpu.slices:
        if part.kind != "mig" or part.gpu_instance is None or part.gpu_instance in found:
            continue
        if part.placement is None or part.profile not in names:
            return None
        place = Placed(part.placement.start, part.placement.size, names[part.profile])
        found[part.gpu_instance] = Present(place, part.profile, part.gpu_instance, part.id)
    for bare in gpu.bare:
        if bare.profile not in names:
            return None
        place = Placed(bare.placement.start, bare.placement.size, names[bare.profile])
        found[bare.gpu_instance] = Present(place, bare.profile, bare.gpu_instance)
    return tuple(sorted(found.values(), key=lambda each: each.placed))


def find_occupants(gpu: Gpu, seats: Mapping[str, str]) -> dict[int, tuple[str, ...]]:
    """Who is in each GPU instance: tenants by their *seats* (MIG device to tenant), and processes whoever started them.

    A process of which the driver does not tell where it is may be anywhere, and so may one more than are listed.
    """
    found: dict[int, list[str]] = {}
    for part in gpu.slices:
        if part.id in seats and part.gpu_instance is not None:
            found.setdefault(part.gpu_instance, []).append(f"tenant {seats[part.id]}")
    everywhere = ["more processes than are listed"] if len(gpu.processes) >= MAX_PROCESSES else []
    for process in gpu.processes:
        if process.gpu_instance is None:
            everywhere.append(f"process {process.pid}")
        else:
            found.setdefault(process.gpu_instance, []).append(f"process {process.pid}")
    if everywhere:
        for part in gpu.slices:
            if part.gpu_instance is not None:
                found.setdefault(part.gpu_instance, [])
        found = {number: [*inside, *everywhere] for number, inside in found.items()}
    return {number: tuple(dict.fromkeys(inside)) for number, inside in found.items()}
