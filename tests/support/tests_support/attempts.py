"""A hostile attempt as three tests: refused by the walls, its harmless twin allowed, and made with a wall taken out.

A file of attempts is a tuple and one line::

    ATTEMPTS = (
        Attempt(
            "42", "open 2,000 descriptors", first="RLIMIT_NOFILE", second="memory cgroup",
            source="import os; result = attempt(lambda: [os.dup(1) for _ in range(2000)])",
            twin="import os; result = attempt(lambda: [os.dup(1) for _ in range(500)])",
            refused="Too many open files",
            removals=(Removal("ok", without="rlimits"),),
        ),
    )
    test_attack, test_twin, test_without = make_tests(ATTEMPTS)

Sources run in a jailed worker of their own. There they find, beside what `Props` gives: ``attempt(function)`` (what
came of it in words, "ok" or the kernel's), ``fds``, ``slot``, and what `prelude` has. What is left in ``result`` is the
outcome, or `Ended` when the worker did not live to tell.

An attempt that takes more than one worker is an ordinary test under ``@attempt(...)``, wherever it lies.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from bedsit.sandbox.cgroup import Limits
from bedsit.sandbox.cgroup.devices import NoProgram
from bedsit.sandbox.nodes import Node
from tests_support.marks import Part, attempt
from tests_support.slots import LIMITS, Ended, House, Slot, Zygote

__all__ = ["LIMITS", "Attempt", "Ended", "Limits", "Props", "Removal", "attempt", "make_tests"]

_PRELUDE: Final = Path(__file__).with_name("prelude.py").read_text()

#: Steps that give the slot a root of its own.
ROOT: Final = "mount_namespace,make_root,devices,scratch,trees,slot_folder,proc,pivot,seal_root"
#: Steps without which the worker is the box's root. Only together with steps that keep it in namespaces of its own.
RIGHTS: Final = "no_groups,user_namespace,open_sysctl,map_ids,no_nesting,bounding_set,own_ids,no_capabilities"


@dataclasses.dataclass(frozen=True)
class Props:
    """What a test put on the box for the attempt: variables for the source, descriptors and nodes for the worker."""

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fds: tuple[int, ...] = ()
    nodes: tuple[Node, ...] = ()


#: Puts props on the box and takes them away again; told of the house, so that they can lie in its folder.
Stage = Callable[[House], contextlib.AbstractContextManager[Props]]
#: Looks at the box after the attempt: whether what must not have happened did not. Raises AssertionError.
Check = Callable[[Slot, Props], None]


@dataclasses.dataclass(frozen=True)
class Removal:
    """The same attempt with a wall taken out, and what comes of it: success, or the second wall's answer.

    *found* is one outcome, or a tuple of those that may be, where kernels are configured differently.
    *without* names steps left out, *bad* steps replaced (zygote_program.BAD), *limits* other limits. The self-check
    goes with any step: it would refuse the slot.
    """

    found: Any
    without: str = ""
    bad: str = ""
    limits: Limits | None = None
    joins: bool = True
    device_program: bool = True
    options: tuple[str, ...] = ()
    source: str = ""
    stage: Stage | None = None
    check: Check | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.without and f"without {self.without}", self.bad and f"with {self.bad}")))

    @property
    def zygote_options(self) -> tuple[str, ...]:
        """The command line of a zygote like that."""
        words: list[str] = [*self.options]
        if self.without or self.bad:
            words += ["--without", ",".join(filter(None, ("self_check", self.without)))]
        if self.bad:
            words += ["--bad", self.bad]
        return tuple(words)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One hostile attempt; see the module. *first* stops it, and when that is missing *second* does, if there is one.

    *outcome*, when given, stands in the table instead of the result of the attack.
    """

    number: str
    title: str
    first: str
    source: str
    refused: Any
    twin: str
    removals: tuple[Removal, ...]
    second: str = "-"
    allowed: Any = "ok"
    limits: Limits = LIMITS
    options: tuple[str, ...] = ()
    profile: str = "standard"
    stage: Stage | None = None
    check: Check | None = None
    machines: tuple[str, ...] = ()
    outcome: str = ""

    def mark(self, part: Part, outcome: Any) -> pytest.MarkDecorator:
        """The mark of one of its tests."""
        return attempt(
            self.number, self.title, first=self.first, second=self.second, part=part, outcome=describe(outcome)
        )


class Ground:
    """Where attempts are made: a house, and one zygote for each list of steps, kept for the session."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._zygotes: dict[tuple[str, ...], Zygote] = {}

    def zygote(self, *options: str) -> Zygote:
        """The zygote of this command line."""
        if options not in self._zygotes:
            self._zygotes[options] = self.house.start_zygote(*options)
            self._zygotes[options].sock.close()  # each slot is ordered on a connection of its own
        return self._zygotes[options]

    def marks(self) -> list[str]:
        """What is the session's and no test's."""
        return [str(self.house.folder), *(f"{zygote.process.pid} (" for zygote in self._zygotes.values())]

    @contextlib.contextmanager
    def without_device_program(self) -> Iterator["Ground"]:
        """The same in a house whose groups have no device program."""
        house = House(devices=NoProgram("taken out"))
        try:
            yield Ground(house)
        finally:
            house.close()

    @contextlib.contextmanager
    def slot(self, *options: str, limits: Limits = LIMITS, **order: Any) -> Iterator[Slot]:
        """A slot of the zygote with these options, which ends with the block."""
        with self.zygote(*options).connected() as zygote:
            slot = self.house.spawn(zygote, limits, **order)
        try:
            yield slot
        finally:
            self.house.end(slot)

    def make(self, source: str, made: Attempt, removal: Removal | None = None, check: Check | None = None) -> Any:
        """Run *source* in a slot of its own and return the outcome."""
        options = removal.zygote_options if removal else ()
        limits = (removal and removal.limits) or made.limits
        joins = removal.joins if removal else True
        if removal and not removal.device_program:
            with self.without_device_program() as ground:
                return ground.make(source, made, dataclasses.replace(removal, device_program=True), check)
        stage = (removal and removal.stage) or made.stage
        with (
            stage(self.house) if stage else contextlib.nullcontext(Props()) as props,
            self.slot(
                *made.options, *options, limits=limits, joins=joins, profile=made.profile, nodes=props.nodes
            ) as slot,
        ):
            outcome = slot.try_out(write_source(source, init_pid=slot.pid, **props.values), props.fds)
            if check:
                check(slot, props)
            return outcome


def write_source(source: str, **values: Any) -> str:
    """*source* with the prelude and *values* as variables before it."""
    return "\n".join((_PRELUDE, *(f"{name} = {value!r}" for name, value in values.items()), source))


def describe(outcome: Any) -> str:
    """An outcome as the table has it."""
    if isinstance(outcome, tuple):
        return " or ".join(map(describe, outcome))
    return ", ".join(map(describe, outcome)) if isinstance(outcome, list) else str(outcome)


def make_tests(attempts: Iterable[Attempt]) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """The tests of *attempts*: attack, twin, and one for each removal."""
    made = tuple(attempts)

    @pytest.mark.parametrize(
        "one", [pytest.param(a, id=a.number, marks=a.mark("attack", a.outcome or a.refused)) for a in made]
    )
    def test_attack(ground: Ground, one: Attempt) -> None:
        """With all walls the attempt is refused, by the wall that is meant to."""
        _require_machine(one)
        outcome = ground.make(one.source, one, check=one.check)
        assert outcome == one.refused, f"{one.title}: {outcome!r}, not {one.refused!r}"

    @pytest.mark.parametrize("one", [pytest.param(a, id=a.number, marks=a.mark("twin", a.allowed)) for a in made])
    def test_twin(ground: Ground, one: Attempt) -> None:
        """In the same jail its harmless twin works."""
        _require_machine(one)
        outcome = ground.make(one.twin, one)
        assert outcome == one.allowed, f"the twin of {one.title}: {outcome!r}, not {one.allowed!r}"

    @pytest.mark.parametrize(
        ("one", "removal"),
        [
            pytest.param(a, r, id=f"{a.number}-{i}" if i else a.number, marks=a.mark("removed", r.found))
            for a in made
            for i, r in enumerate(a.removals)
        ],
    )
    def test_without(
        ground: Ground, one: Attempt, removal: Removal, record_property: Callable[[str, object], None]
    ) -> None:
        """Without its wall the same attempt gets further: to success, or to the second wall."""
        _require_machine(one)
        outcome = ground.make(removal.source or one.source, one, removal, removal.check)
        record_property("outcome", describe(outcome))
        expected = removal.found if isinstance(removal.found, tuple) else (removal.found,)
        assert outcome in expected, f"{one.title} {removal}: {outcome!r}"

    return test_attack, test_twin, test_without


def _require_machine(one: Attempt) -> None:
    import platform

    if one.machines and platform.machine() not in one.machines:
        pytest.skip(f"only on {', '.join(one.machines)}")
