"""Whether a model of GPU could be cut as it was declared, whatever is there now; if not, what comes nearest. Pure."""

from collections.abc import Iterator, Sequence

from bedsit.ipc.spelling import nearest
from bedsit.supervisor.devices.partitions.declared import Part
from bedsit.supervisor.placement.geometry import Misfit, Placed, cover, search
from bedsit.supervisor.placement.profiles import Table


def find_wrong(table: Table, parts: Sequence[Part]) -> Iterator[tuple[str, str]]:
    """What of a declaration no GPU of this model could be, and why; nothing where all of it could."""
    unknown = [part for part in parts if table.find(part.profile) is None]
    for part in unknown:
        hint = nearest(part.profile, table.names)
        words = f"this GPU has no {part.profile}; {f'{hint} It' if hint else 'it'} has {', '.join(table.names)}"
        yield (str(part), words)
    placed = [part for part in parts if part.start is not None and part not in unknown]
    misplaced = [part for part in placed if part.start not in _starts(table, part)]
    for part in misplaced:
        starts = " or ".join(map(str, _starts(table, part)))
        yield (str(part), f"{part.profile} can begin at {starts}, not at {part.start}")
    if unknown or misplaced:
        return
    fixed: list[Placed] = []
    for part in placed:
        place = put(table, part)
        rival = next((other for other in fixed if other.mask & place.mask), None)
        if rival is not None:
            free = [start for start in _starts(table, part) if not _at(place, start).mask & cover(fixed)]
            hint = f"; {part.profile} could begin at {' or '.join(map(str, free))}" if free else ""
            yield (str(part), f"it overlaps {rival}{hint}")
            return
        fixed.append(place)
    together = search(table, [part.profile for part in parts])
    floating = [part.profile for part in parts if part.start is None]
    misfit = together if isinstance(together, Misfit) else search(table, floating, fixed)
    if isinstance(misfit, Misfit):
        fits = [*(str(part) for part in placed if misfit is not together), *misfit.fits]
        fit = f"; what fits: {', '.join(fits)}" if fits else ""
        yield (", ".join(map(str, parts)), f"{misfit.words}{fit}")


def _starts(table: Table, part: Part) -> tuple[int, ...]:
    profile = table.find(part.profile)
    return profile.starts if profile is not None else ()


def put(table: Table, part: Part) -> Placed:
    """The place of a part that says where it begins."""
    profile = table.find(part.profile)
    return Placed(part.start or 0, profile.size if profile is not None else 1, part.profile)


def _at(place: Placed, start: int) -> Placed:
    return Placed(start, place.size, place.profile)
