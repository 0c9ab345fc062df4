"""Which seats a request could have, and for each device where it has none, why. Pure.

Trust comes first: a GPU that is shared in time keeps nobody out who means harm (docs/gpu/2026-11-26-h100.md), so who is
not trusted has no seat on one, whatever else is said.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bedsit.supervisor.placement.geometry import Misfit, Placed, list_places, search
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import Rules
from bedsit.supervisor.placement.seating import LEAST_BYTES, Card, Seat, Seating, Use

Code = Literal[
    "trust", "no_gpu", "model", "mig_off", "mig_on", "profile", "places", "taken", "share", "min_share", "memory",
    "near", "apart", "cores", "degraded", "not_shared",
]  # fmt: skip
_WHOLE_MILLI = 1000
_GIB = 1 << 30


@dataclass(frozen=True)
class Reason:
    """Why a request has no seat on a device (or, where *device* is empty, on any): *words* follow the device's name."""

    device: str
    code: Code
    words: str

    def __str__(self) -> str:
        return f"{self.device}: {self.words}" if self.device else self.words


@dataclass(frozen=True)
class Found:
    """Every seat there is, and every reason against the others."""

    seats: tuple[Seat, ...]
    reasons: tuple[Reason, ...]


def find_seats(seating: Seating, tenant: str, request: Request, rules: Rules) -> Found:
    """What *tenant* could have of *box* for *request*."""
    if request.kind == "timeslice" and not request.trusted:
        words = "a GPU that is shared in time is no wall; who is not trusted gets MIG, a whole GPU or cores"
        return Found((), (Reason("", "trust", words),))
    if request.kind == "cpu":
        return _find_cores(seating, tenant, request)
    uses = [use for use in seating.uses if use.card.is_gpu == request.wants_gpu]
    if not uses and request.wants_gpu:
        return Found((), (Reason("", "no_gpu", "this box has no GPU"),))
    if not uses:
        return Found((), (Reason("", "not_shared", "this box shares no cores; see devices.shared_cores"),))
    seats: list[Seat] = []
    reasons: list[Reason] = []
    for use in uses:
        against = [
            *_refuse(use, request, rules),
            *_refuse_company(seating, use.card.name, use.tenants, tenant, request),
        ]
        reasons += against
        if not against:
            seats += _list_seats(use, request)
    return Found(tuple(seats), tuple(reasons))


def take_memory(card: Card, request: Request) -> int:
    """What a request takes of a time-sliced GPU's memory: of each of its slots its quota and a context.

    Who names no quota has its part of the whole, contexts included. A slot that is there for a moment, to replace
    another one, is not counted (ADR 26).
    """
    if not card.is_gpu:
        return 0
    part = card.memory_bytes * request.share_milli // _WHOLE_MILLI // request.slots - card.context_bytes
    return request.slots * (max(request.memory_bytes or part, LEAST_BYTES) + card.context_bytes)


def list_instances(use: Use, profile_name: str) -> Iterator[Placed]:
    """The instances of a profile that could be made on a GPU, or are there for whoever comes."""
    table, declared = use.card.table, use.card.declared
    profile = table.find(profile_name) if table else None
    if table is None or profile is None:
        return
    if declared is None:
        yield from list_places(table, profile, use.taken)
    else:
        yield from (place for place in declared if place.profile == profile_name and not place.mask & use.mask)


def _list_seats(use: Use, request: Request) -> Iterator[Seat]:
    device = (use.card.name,)
    if request.kind == "mig":
        yield from (Seat(device, placed=place) for place in list_instances(use, request.profile))
    elif request.kind == "exclusive":
        yield Seat(device)
    else:
        memory, slots = take_memory(use.card, request), request.slots if use.card.is_gpu else 1
        yield Seat(device, cores=use.card.cores, memory_bytes=memory, is_shared=True, slots=slots)


def _refuse(use: Use, request: Request, rules: Rules) -> Iterator[Reason]:
    card = use.card
    if card.trouble:
        yield Reason(card.name, "degraded", f"degraded: {card.trouble}")
    elif not card.is_model(request.model):
        yield Reason(card.name, "model", f"it is {card.model}, not {request.model}")
    elif request.kind == "mig":
        yield from _refuse_instance(use, request)
    elif card.table is not None:
        yield Reason(card.name, "mig_on", "cut by MIG")
    elif use.holder is not None:
        yield Reason(card.name, "taken", f"{use.holder}'s alone")
    elif request.is_shared:
        yield from _refuse_share(use, request, rules)
    else:
        if use.residents:
            yield Reason(card.name, "taken", f"shared by {_list(use.tenants)}")
        if request.memory_bytes + card.context_bytes > card.memory_bytes:
            yield _short(card, request.memory_bytes + card.context_bytes, card.memory_bytes)


def _refuse_instance(use: Use, request: Request) -> Iterator[Reason]:
    card = use.card
    profile = card.table.find(request.profile) if card.table else None
    if card.table is None:
        yield Reason(card.name, "mig_off", "not cut by MIG")
        return
    if profile is None:
        yield Reason(card.name, "profile", f"no {request.profile}, only {_list(card.table.names)}")
        return
    if request.memory_bytes and request.memory_bytes + card.context_bytes > profile.memory_bytes:
        yield _short(card, request.memory_bytes + card.context_bytes, profile.memory_bytes)
    if next(list_instances(use, request.profile), None) is None:
        broken = next((why for place, why in card.broken if place.profile == request.profile), None)
        if broken:
            yield Reason(card.name, "degraded", f"degraded: {broken}")
        misfit = search(card.table, [request.profile], use.taken)
        if isinstance(misfit, Misfit):
            words = f"no place, {misfit.words}"
        elif any(place.profile == request.profile for place in card.declared or ()):
            words = f"every declared {request.profile} is occupied"
        else:
            words = f"no {request.profile} is declared"
        yield Reason(card.name, "places", words)


def _refuse_share(use: Use, request: Request, rules: Rules) -> Iterator[Reason]:
    card = use.card
    charge, left = rules.charge(request.share_milli, request.service_class), _WHOLE_MILLI - use.charged_milli(rules)
    if charge > left:
        words = f"{max(0, left) / 1000:g} of its time is left, and {charge / 1000:g} would be counted"
        yield Reason(card.name, "share", words)
    if request.min_share_milli > _WHOLE_MILLI - use.guaranteed_milli:
        left = _WHOLE_MILLI - use.guaranteed_milli
        words = f"{left / 1000:g} is left to guarantee, and {request.min_share_milli / 1000:g} is asked for"
        yield Reason(card.name, "min_share", words)
    need, have = take_memory(card, request), int(card.memory_bytes * rules.memory_factor) - use.promised_bytes
    if need > have:
        yield _short(card, need, have)


def _refuse_company(
    seating: Seating, device: str, tenants: tuple[str, ...], tenant: str, request: Request
) -> Iterator[Reason]:
    """Whom it wants beside it, and who must not be: those whom it names, and those who named it."""
    wanted = request.near & seating.tenants
    if wanted and wanted.isdisjoint(tenants):
        yield Reason(device, "near", f"without {_list(sorted(wanted))}")
    shy = {each.tenant for each in seating.residents if tenant in each.request.apart}
    unwanted = sorted((request.apart | shy).intersection(tenants))
    if unwanted:
        yield Reason(device, "apart", f"has {_list(unwanted)}")


def _find_cores(seating: Seating, tenant: str, request: Request) -> Found:
    """Cores of one node where there is one with enough; else of several, the fullest last."""
    if not seating.nodes:
        return Found((), (Reason("", "cores", "this box gives no cores away"),))
    reasons: list[Reason] = []
    open_nodes: list[tuple[str, tuple[int, ...]]] = []
    for node, free in zip(seating.nodes, seating.free_cores, strict=True):
        name = node.name
        tenants = tuple(each.tenant for each in seating.residents if name in each.seat.devices)
        against = list(_refuse_company(seating, name, tenants, tenant, request))
        reasons += against
        if not against:
            open_nodes.append((name, free))
    seats = [Seat((name,), cores=free[: request.cores]) for name, free in open_nodes if len(free) >= request.cores]
    if not seats and sum(len(free) for _, free in open_nodes) >= request.cores:
        left = request.cores
        names: list[str] = []
        cores: list[int] = []
        for name, free in sorted(open_nodes, key=lambda node: -len(node[1])):
            if left:
                names.append(name)
                cores += free[:left]
                left -= len(free[:left])
        seats = [Seat(tuple(names), cores=tuple(cores))]
    if not seats:
        notes = {node.name: f" ({node.note})" if node.note else "" for node in seating.nodes}
        reasons += [
            Reason(name, "cores", f"{len(free)} of {request.cores} cores are free{notes[name]}")
            for name, free in open_nodes
        ]
    return Found(tuple(seats), tuple(reasons))


def _short(card: Card, need: int, have: int) -> Reason:
    return Reason(
        card.name, "memory", f"{max(0, have) / _GIB:.1f} GiB of memory, and {need / _GIB:.1f} are needed with a context"
    )


def _list(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names)
