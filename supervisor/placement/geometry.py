"""Where MIG instances of one GPU can be: exact, for there are at most eighteen places and eight slots. Pure.

Guarantees: a geometry is found whenever there is one, in whatever order it is written; an instance that somebody is in
stays where it is. Why not as `mig-parted`, which tries every order and leaves places to the driver: it has to clear
the GPU between two tries.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations
from typing import Literal

from bedsit.supervisor.placement.profiles import Profile, Table


@dataclass(frozen=True, order=True)
class Placed:
    """An instance, or the place for one: slots *start* to *start + size - 1*."""

    start: int
    size: int
    profile: str

    @property
    def mask(self) -> int:
        """Its slots, the first one in the lowest bit."""
        return ((1 << self.size) - 1) << self.start

    def __str__(self) -> str:
        last = self.start + self.size - 1
        return f"{self.profile} in slot{f's {self.start} to {last}' if last > self.start else f' {self.start}'}"


@dataclass(frozen=True)
class Misfit:
    """Why a geometry cannot be: *words* for people, and what of it *fits*."""

    code: Literal["profile", "limit", "slots", "starts"]
    words: str
    fits: tuple[str, ...]


@dataclass(frozen=True)
class Instance:
    """An instance that is there."""

    placed: Placed
    is_occupied: bool


@dataclass(frozen=True)
class Plan:
    """What makes a GPU's geometry the declared one, without touching what is occupied.

    *remove* goes first. *refuse* is what cannot be made while the occupied instances stay, and *why*; *blocked* are the
    places that were asked for and that these leave no room for.
    """

    keep: tuple[Placed, ...]
    remove: tuple[Placed, ...]
    create: tuple[Placed, ...]
    refuse: tuple[str, ...] = ()
    why: Misfit | None = None
    blocked: tuple[Placed, ...] = ()


def cover(placed: Iterable[Placed]) -> int:
    """The slots that these take, as a bitmap."""
    mask = 0
    for each in placed:
        mask |= each.mask
    return mask


def list_places(table: Table, profile: Profile, taken: Collection[Placed]) -> Iterator[Placed]:
    """Every place that is left for one more of *profile* beside what is *taken*."""
    if not _is_within_limits(table, [*taken, Placed(0, 0, profile.name)]):
        return
    mask = cover(taken)
    for start in profile.starts:
        place = Placed(start, profile.size, profile.name)
        if not place.mask & mask:
            yield place


@lru_cache(maxsize=1 << 14)
def count_places(profile: Profile, mask: int) -> int:
    """How many of *profile* there is room for at once, limits aside: the leftmost first, as all are of one size."""
    count = end = 0
    for start in profile.starts:
        slots = ((1 << profile.size) - 1) << start
        if start >= end and not slots & mask:
            count, end = count + 1, start + profile.size
    return count


def search(table: Table, wanted: Sequence[str], taken: Collection[Placed] = ()) -> tuple[Placed, ...] | Misfit:
    """A place for each of *wanted* beside what is *taken*, in the order of *wanted*; else why there is none."""
    found = _search_most(table, Counter(wanted), taken, frozenset())
    if len(found) == len(wanted):
        left = sorted(found)
        return tuple(left.pop(next(i for i, p in enumerate(left) if p.profile == name)) for name in wanted)
    return _say_why(table, wanted, taken, tuple(place.profile for place in found))


def plan(table: Table, declared: Sequence[str], there: Collection[Instance], fixed: Collection[Placed] = ()) -> Plan:
    """How to get from what is *there* to what is *declared*, and *fixed* in its place; one of those that keep most."""
    occupied = sorted(each.placed for each in there if each.is_occupied)
    idle = sorted(each.placed for each in there if not each.is_occupied)
    taken, blocked = list(occupied), list[Placed]()
    for place in sorted(set(fixed).difference(occupied)):
        fits_in = not place.mask & cover(taken) and _is_within_limits(table, [*taken, place])
        (taken if fits_in else blocked).append(place)
    missing = Counter(declared)
    missing.subtract(Counter(place.profile for place in occupied if place not in fixed))
    missing = +missing
    found = _search_most(table, missing, taken, frozenset(idle))
    refuse = tuple((missing - Counter(place.profile for place in found)).elements())
    fits = tuple(place.profile for place in found)
    wanted = {*found, *taken}
    return Plan(
        keep=tuple(sorted([*occupied, *(place for place in idle if place in wanted)])),
        remove=tuple(place for place in idle if place not in wanted),
        create=tuple(sorted(wanted.difference(occupied, idle))),
        refuse=refuse,
        why=_say_why(table, tuple(missing.elements()), taken, fits) if refuse else None,
        blocked=tuple(blocked),
    )


def _search_most(
    table: Table, wanted: Counter[str], taken: Collection[Placed], preferred: frozenset[Placed]
) -> tuple[Placed, ...]:
    """Places for as much of *wanted* as there is room for: most slots, then most instances, then most *preferred*."""
    profiles = sorted((p for p in table.profiles if wanted[p.name]), key=lambda p: (-p.size, len(p.starts), p.name))
    counts = [min(wanted[p.name], p.limit - sum(place.profile == p.name for place in taken)) for p in profiles]
    worst = (-1, -1, -1)

    @cache
    def best(index: int, mask: int, has_media: bool) -> tuple[tuple[int, int, int], tuple[Placed, ...]]:  # noqa: FBT001
        if index == len(profiles):
            return (0, 0, 0), ()
        profile, most = profiles[index], worst
        chosen: tuple[Placed, ...] = ()
        count = min(counts[index], 0 if has_media else 1) if profile.has_media else counts[index]
        for places in _choose(profile, count, mask):
            rest, others = best(index + 1, mask | cover(places), has_media or (profile.has_media and bool(places)))
            value = (
                rest[0] + len(places) * profile.size,
                rest[1] + len(places),
                rest[2] + sum(place in preferred for place in places),
            )
            if value > most:
                most, chosen = value, (*places, *others)
        return most, chosen

    media = any("+me" in place.profile for place in taken)
    return best(0, cover(taken), media)[1]


def _choose(profile: Profile, most: int, mask: int) -> Iterator[tuple[Placed, ...]]:
    """Every set of at most *most* places of a profile that overlap neither each other nor *mask*, large ones first."""
    places = [Placed(start, profile.size, profile.name) for start in profile.starts]
    places = [place for place in places if not place.mask & mask]
    for count in range(min(max(most, 0), len(places)), -1, -1):
        for chosen in combinations(places, count):
            if cover(chosen).bit_count() == count * profile.size:
                yield chosen


def _is_within_limits(table: Table, placed: Collection[Placed]) -> bool:
    counts = Counter(place.profile for place in placed)
    known = [(profile, counts[profile.name]) for profile in table.profiles]
    return all(count <= p.limit for p, count in known) and sum(count for p, count in known if p.has_media) <= 1


def _say_why(table: Table, wanted: Sequence[str], taken: Collection[Placed], fits: tuple[str, ...]) -> Misfit:
    """The plainest true reason: no such profile, too many of one, not enough slots, or slots in the wrong places."""
    beside = f" beside {', '.join(map(str, sorted(taken)))}" if taken else ""
    others = beside or (" beside the others" if fits else "")
    unknown = sorted({name for name in wanted if table.find(name) is None})
    if unknown:
        return Misfit("profile", f"this GPU has no {', '.join(unknown)}; it has {', '.join(table.names)}", fits)
    counts = Counter([*wanted, *(place.profile for place in taken)])
    for profile in table.profiles:
        if counts[profile.name] > profile.limit:
            words = f"{counts[profile.name]} of {profile.name} on a GPU that takes {profile.limit}"
            return Misfit("limit", words, fits)
    if sum(counts[profile.name] for profile in table.profiles if profile.has_media) > 1:
        return Misfit("limit", "there is one set of media engines, for one instance", fits)
    sizes = {profile.name: profile.size for profile in table.profiles}
    needed, free = sum(sizes[name] for name in wanted), table.slots - cover(taken).bit_count()
    if needed > free:
        return Misfit("slots", f"{needed} slots are needed and {free} of {table.slots} are free{beside}", fits)
    name = next(iter((Counter(wanted) - Counter(fits)).elements()))
    profile = next(profile for profile in table.profiles if profile.name == name)
    starts = f"{profile.starts[0]}" if len(profile.starts) == 1 else f"one of {', '.join(map(str, profile.starts))}"
    words = f"{name} takes {profile.size} in a row from {starts} on, and no such place is left{others}"
    return Misfit("starts", words, fits)
