"""What there is to sit on, and who sits where: GPUs, cores. Pure; a step makes a new seating."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from bedsit.supervisor.placement.geometry import Placed, cover
from bedsit.supervisor.placement.profiles import Table
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import Rules

#: What a CUDA context takes of an H100's memory (docs/gpu/2026-11-26-h100.md).
CONTEXT_BYTES: Final = 529 << 20
#: Less than this beside its context is of no use to a worker: torch takes memory in pieces of 2 and 20 MiB.
LEAST_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Card:
    """A GPU. *memory_bytes*: what processes can have of it. With a *table* it is cut by MIG, without it is not.

    *declared*: the only places for instances, where its operator fixed them; None where they are made as tenants come.
    *possible*: how MIG would cut it, as far as its driver says so. *trouble*: why it takes nobody new, if so; *broken*:
    the places that do not, each with why. With *cores* it is no GPU, but cores that tenants take turns on: these have
    no memory of their own.
    """

    name: str
    model: str
    memory_bytes: int
    table: Table | None = None
    declared: tuple[Placed, ...] | None = None
    context_bytes: int = CONTEXT_BYTES
    cores: tuple[int, ...] = ()
    possible: Table | None = None
    trouble: str = ""
    broken: tuple[tuple[Placed, str], ...] = ()

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return not self.cores

    def is_model(self, words: str) -> bool:
        """Whether all of *words* are in its name, as words: ``H200`` is in ``NVIDIA H200 NVL``, not in ``GH200``."""
        return not words or set(_words(words)) <= set(_words(self.model))


@dataclass(frozen=True)
class Node:
    """The cores of a NUMA node that may be given away; *note* says why others of it may not, if there are any."""

    name: str
    cores: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class Seat:
    """Where a tenant sits: on one GPU or the cores of one name, or on cores of one or several nodes.

    *is_shared*: others sit there too, and they take turns. *memory_bytes*: promised of a GPU that is shared so, to
    all of its *slots* together.
    """

    devices: tuple[str, ...]
    placed: Placed | None = None
    cores: tuple[int, ...] = ()
    memory_bytes: int = 0
    is_shared: bool = False
    slots: int = 1

    @property
    def slot_bytes(self) -> int:
        """What each slot may have of a GPU that is shared, with its context."""
        return self.memory_bytes // self.slots

    @property
    def device(self) -> str:
        """What slots on it are born for: the name of its GPU, or of its part of one; empty where there are cores only.

        Not the UUID of a MIG device, which is another one each time that the instance is made.
        """
        return "" if self.cores else str(self)

    def __str__(self) -> str:
        where = " and ".join(self.devices)
        if self.placed:
            return f"{where}, {self.placed}"
        return f"{where}, cores {', '.join(map(str, self.cores))}" if self.cores else where


@dataclass(frozen=True)
class Resident:
    """A tenant and its seat."""

    tenant: str
    request: Request
    seat: Seat


@dataclass(frozen=True)
class Use:
    """A GPU and who is on it."""

    card: Card
    residents: tuple[Resident, ...] = ()

    @cached_property
    def tenants(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(each.tenant for each in self.residents)

    @cached_property
    def taken(self) -> tuple[Placed, ...]:
        """The instances that are occupied."""
        return tuple(each.seat.placed for each in self.residents if each.seat.placed is not None)

    @cached_property
    def mask(self) -> int:
        """Their slots."""
        return cover(self.taken)

    @cached_property
    def holder(self) -> str | None:
        """Who has it for itself."""
        return next((each.tenant for each in self.residents if each.request.kind == "exclusive"), None)

    @cached_property
    def promised_bytes(self) -> int:
        """Memory that is promised while it is time-sliced."""
        return sum(each.seat.memory_bytes for each in self.residents)

    @cached_property
    def guaranteed_milli(self) -> int:
        """Guaranteed shares."""
        return sum(each.request.min_share_milli for each in self.residents)

    def charged_milli(self, rules: Rules) -> int:
        """Shares, as far as they count."""
        return sum(rules.charge(each.request.share_milli, each.request.service_class) for each in self.residents)


@dataclass(frozen=True)
class Seating:
    """GPUs and cores that are shared, the cores of each NUMA node that may be given away, and the residents."""

    cards: tuple[Card, ...] = ()
    nodes: tuple[Node, ...] = ()
    residents: tuple[Resident, ...] = ()

    @cached_property
    def uses(self) -> tuple[Use, ...]:
        """Each GPU with who is on it."""
        by_device: dict[str, list[Resident]] = {card.name: [] for card in self.cards}
        for each in self.residents:
            for device in each.seat.devices:
                by_device.setdefault(device, []).append(each)
        return tuple(Use(card, tuple(by_device[card.name])) for card in self.cards)

    @cached_property
    def gpus(self) -> tuple[Card, ...]:
        """The cards that are GPUs."""
        return tuple(card for card in self.cards if card.is_gpu)

    @cached_property
    def free_cores(self) -> tuple[tuple[int, ...], ...]:
        """The cores of each node that nobody has."""
        taken = {core for each in self.residents for core in each.seat.cores}
        return tuple(tuple(core for core in node.cores if core not in taken) for node in self.nodes)

    @cached_property
    def tenants(self) -> frozenset[str]:
        """Everybody who sits here."""
        return frozenset(each.tenant for each in self.residents)

    def seat(self, tenant: str, request: Request, seat: Seat) -> "Seating":
        """The same with one more resident."""
        return replace(self, residents=(*self.residents, Resident(tenant, request, seat)))

    def leave(self, tenants: Collection[str]) -> "Seating":
        """The same without these."""
        return replace(self, residents=tuple(each for each in self.residents if each.tenant not in tenants))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
