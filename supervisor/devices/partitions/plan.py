"""What to do so that a GPU is cut as it was declared, line by line, with why. Pure.

An instance that somebody is in is never destroyed, whatever was declared. Of several ways that lead to what was
declared the one is taken that keeps most of what is there.

| there             | declared                     | line                          |
|-------------------|------------------------------|-------------------------------|
| occupied          | yes, or no                   | keep                          |
| idle              | yes, where it is             | keep                          |
| idle, but bare    | yes, where it is             | finish: a compute instance    |
| idle, bare or not | no, or at another place      | destroy                       |
| nothing           | yes, and there is room       | create                        |
| what is occupied  | yes, and there is no room    | impossible, with who is there |
| whatever          | what this GPU cannot be      | impossible, and nothing else  |
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bedsit.supervisor.devices.model import Gpu, Placement, Trouble
from bedsit.supervisor.devices.partitions.declared import Part
from bedsit.supervisor.devices.partitions.possible import find_wrong, put
from bedsit.supervisor.devices.partitions.there import Present, list_present
from bedsit.supervisor.placement.cards import make_table, name_profile
from bedsit.supervisor.placement.geometry import Instance, Placed, Plan, plan
from bedsit.supervisor.placement.profiles import Table

Action = Literal["keep", "finish", "create", "destroy", "impossible"]
#: Who is in each GPU instance, by its number; who is in one may be in all where nobody can tell.
Occupants = Mapping[int, tuple[str, ...]]
CHANGES: Final = ("destroy", "finish", "create")


@dataclass(frozen=True)
class Line:
    """One instance: what is done about it, and *why*. *profile* as it was written; *profile_id* is the driver's."""

    action: Action
    profile: str
    why: str = ""
    placement: Placement | None = None
    profile_id: int | None = None
    gpu_instance: int | None = None
    device: str | None = None
    occupants: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """``3g.71gb in slots 4 to 7``."""
        return str(Placed(self.placement.start, self.placement.size, self.profile)) if self.placement else self.profile


@dataclass(frozen=True)
class GpuPlan:
    """Everything about one GPU, what goes first. *trouble*: why it cannot be cut at all, as it is."""

    key: str
    uuid: str | None = None
    lines: tuple[Line, ...] = ()
    trouble: Trouble | None = None

    @property
    def changes(self) -> tuple[Line, ...]:
        """What would be done, in order."""
        return tuple(line for action in CHANGES for line in self.lines if line.action == action)

    @property
    def impossible(self) -> tuple[Line, ...]:
        """What was declared and cannot be."""
        return tuple(line for line in self.lines if line.action == "impossible")


def make_plan(
    key: str,
    gpu: Gpu,
    parts: Sequence[Part],
    occupants: Occupants,
    *,
    seated: Collection[Placed] = (),
    destroys_nothing: bool = False,
) -> GpuPlan:
    """How *gpu* comes to be cut into *parts*. *destroys_nothing*: as if everything that is there were occupied.

    *seated*: places where tenants have their seats; if there is no instance any more, the next one is made there.
    """
    trouble = _find_trouble(gpu)
    present, table = list_present(gpu), make_table(gpu)
    if trouble is not None or present is None or table is None:
        return GpuPlan(key, gpu.uuid, (), trouble or _NO_PLACES)
    wrong = tuple(find_wrong(table, parts))
    if wrong:
        return GpuPlan(key, gpu.uuid, tuple(Line("impossible", what, why) for what, why in wrong))
    known = {each.placed: each for each in present}
    instances = [Instance(each.placed, destroys_nothing or each.gpu_instance in occupants) for each in present]
    made = _search(table, parts, instances, seated)
    ids = {name_profile(each.name): each.id for each in gpu.profiles}
    extra = _count_extra(parts, made.keep)
    lines = [_destroy(known[place]) for place in made.remove]
    lines += [_keep(known[place], occupants, declared=place not in extra) for place in made.keep]
    lines += [
        Line("create", place.profile, "declared", Placement(place.start, place.size), ids[place.profile])
        for place in made.create
    ]
    lines += [_refuse_place(place, made.keep, known, occupants) for place in made.blocked]
    in_the_way = _name_all([known[place] for place in made.keep], occupants)
    words = f"{made.why.words}; {in_the_way}" if made.why else ""
    lines += [Line("impossible", profile, words) for profile in made.refuse]
    return GpuPlan(key, gpu.uuid, tuple(lines))


def _find_trouble(gpu: Gpu) -> Trouble | None:
    """Why a GPU cannot be cut. Its mode is the operator's: a change of it ends everybody who has the GPU open."""
    if gpu.trouble is not None:
        return gpu.trouble
    if gpu.mig == "unsupported":
        return Trouble("this GPU, or its driver, has no MIG", "take it out of [devices.partitions]")
    if gpu.mig_pending:
        mend = "nvidia-smi -r -i UUID with bedsitd stopped, or reboot; to take the change back: nvidia-smi -i UUID -mig"
        return Trouble(gpu.note, f"{mend} {int(gpu.mig == 'on')}")
    if gpu.mig == "off":
        mend = f"stop bedsitd, which holds the GPU open; nvidia-smi -i {gpu.uuid} -mig 1; start it (docs/mig.md)"
        return Trouble("MIG is off", mend)
    return None


_NO_PLACES: Final = Trouble(
    "the driver does not tell where the instances of this GPU lie", "does the helper run as root? nvidia-smi mig -lgi"
)


def _search(table: Table, parts: Sequence[Part], there: Sequence[Instance], seated: Collection[Placed]) -> Plan:
    """Which instances stay, go and are made; who has a seat gets it back where that costs nothing else declared."""
    fixed = [put(table, part) for part in parts if part.start is not None]
    floating = [part.profile for part in parts if part.start is None]
    given_back = _give_back(floating, fixed, [each.placed for each in there], seated)
    if given_back:
        others = Counter(floating) - Counter(place.profile for place in given_back)
        made = plan(table, list(others.elements()), there, [*fixed, *given_back])
        if not made.refuse and not made.blocked:
            return made
    return plan(table, floating, there, fixed)


def _give_back(
    floating: Sequence[str], fixed: Sequence[Placed], there: Collection[Placed], seated: Collection[Placed]
) -> list[Placed]:
    """Of what is missing, that of which a tenant has a seat at some place, and that place."""
    missing = Counter(floating)
    missing.subtract(place.profile for place in there if place not in fixed)
    found = []
    for place in sorted(set(seated).difference(there, fixed)):
        if missing[place.profile] > 0:
            missing[place.profile] -= 1
            found.append(place)
    return found


def _count_extra(parts: Sequence[Part], kept: Sequence[Placed]) -> set[Placed]:
    """What is kept though nobody declared it, as somebody is in it; an instance at its declared place counts first."""
    placed = {(part.profile, part.start) for part in parts if part.start is not None}
    floating = [part.profile for part in parts if part.start is None]
    extra = set()
    for place in kept:
        if (place.profile, place.start) in placed:
            continue
        if place.profile in floating:
            floating.remove(place.profile)
        else:
            extra.add(place)
    return extra


def _keep(present: Present, occupants: Occupants, *, declared: bool) -> Line:
    inside = occupants.get(present.gpu_instance, ())
    words = "declared" if declared else "not declared"
    if inside:
        words += f", occupied by {', '.join(inside)}"
    if declared and present.is_bare:
        return _make_line("finish", present, "declared, but has no compute instance: it was left half made")
    return _make_line("keep", present, words, inside)


def _destroy(present: Present) -> Line:
    return _make_line("destroy", present, "not declared at this place, and nobody is in it")


def _make_line(action: Action, present: Present, why: str, occupants: tuple[str, ...] = ()) -> Line:
    place = present.placed
    return Line(
        action=action,
        profile=place.profile,
        why=why,
        placement=Placement(place.start, place.size),
        profile_id=present.profile_id,
        gpu_instance=present.gpu_instance,
        device=present.device,
        occupants=occupants,
    )


def _refuse_place(place: Placed, kept: Sequence[Placed], known: Mapping[Placed, Present], occupants: Occupants) -> Line:
    rivals = [known[other] for other in kept if other.mask & place.mask] or [known[other] for other in kept]
    placement = Placement(place.start, place.size)
    return Line("impossible", place.profile, f"in the way: {_name_all(rivals, occupants)}", placement)


def _name_all(present: Sequence[Present], occupants: Occupants) -> str:
    named = []
    for each in present:
        inside = ", ".join(occupants.get(each.gpu_instance, ()))
        named.append(f"{each.placed} has {inside}" if inside else f"{each.placed} would have to go")
    return "; ".join(named)
