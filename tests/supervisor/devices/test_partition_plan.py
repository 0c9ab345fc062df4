"""What is done so that a GPU is cut as declared: a table in, lines out, nobody asked."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.supervisor.devices.model import Bare, Gpu, Placement, Process, Profile, Slice, Trouble
from bedsit.supervisor.devices.partitions.declared import Declaration, read_partitions
from bedsit.supervisor.devices.partitions.plan import GpuPlan, make_plan
from bedsit.supervisor.devices.partitions.refusals import explain, make_token
from bedsit.supervisor.devices.partitions.there import find_occupants, list_seats
from bedsit.supervisor.placement.cards import make_table
from bedsit.supervisor.placement.geometry import Placed
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.seating import Resident, Seat
from tests_support.nvml.cards import A30, A100, B200, H100, H200, Card

UUID = "GPU-8f3a0000-0000-0000-0000-000000000000"


def read_places(text: str) -> tuple[Placement, ...]:
    """The places of a profile: ``0:4,4:4``."""
    return tuple(Placement(*map(int, place.split(":"))) for place in text.split(","))


def make_gpu(card: Card, *there: tuple[str, int], bare: Sequence[tuple[str, int]] = ()) -> Gpu:
    """A GPU with MIG on, cut into these (profile, start), numbered from 1 on."""
    profiles = tuple(
        Profile(ident, name, slices, mb << 20, sms, count, read_places(places))
        for _, ident, slices, count, sms, mb, places, name in card.profiles
    )

    def find(name: str, start: int) -> tuple[int, Placement]:
        profile = next(each for each in profiles if each.name == f"MIG {name}")
        return profile.id, next(place for place in profile.placements if place.start == start)

    slices = []
    for number, (name, start) in enumerate(there, 1):
        ident, place = find(name, start)
        slices.append(
            Slice(f"MIG-{number}", "mig", name, 1, "x", UUID, profile=ident, placement=place, gpu_instance=number)
        )
    halves = tuple(Bare(10 + index, *find(*each)) for index, each in enumerate(bare))
    return Gpu(UUID, 0, card.name, mig="on", profiles=profiles, slices=tuple(slices), bare=halves)


def make(gpu: Gpu, *parts: str, occupied: dict[int, tuple[str, ...]] | None = None, gently: bool = False) -> GpuPlan:
    """The plan."""
    (declared,) = read_partitions({"0": list(parts)})
    return make_plan("0", gpu, declared.parts, occupied or {}, destroys_nothing=gently)


def say(plan: GpuPlan) -> list[str]:
    """Its lines in short."""
    return [f"{line.action} {line.what}" for line in plan.lines]


@pytest.mark.parametrize("order", [*permutations(("1g.10gb", "2g.20gb", "4g.40gb"))], ids=" ".join)
def test_every_order_of_one_two_and_four_is_made(order: tuple[str, ...]) -> None:
    """By first fit five of the six fail."""
    plan = make(make_gpu(H100), *order)
    assert sorted(line.action for line in plan.lines) == ["create"] * 3
    assert "create 4g.40gb in slots 0 to 3" in say(plan)


@pytest.mark.parametrize("card", [A100, A30, H100, H200, B200], ids=lambda card: card.name)
def test_the_smallest_profile_fills_every_card(card: Card) -> None:
    """As often as its driver says that it can."""
    small = min(card.profiles, key=lambda row: (row[5], row[7]))
    plan = make(make_gpu(card), *[small[7].removeprefix("MIG ")] * small[3])
    assert [line.action for line in plan.changes] == ["create"] * small[3]
    assert {line.profile_id for line in plan.changes} == {small[1]}


def test_what_is_there_is_kept_what_is_missing_made_and_what_is_in_the_way_goes() -> None:
    """First what goes; of what is idle as much as possible stays."""
    gpu = make_gpu(H100, ("1g.10gb", 0), ("1g.10gb", 6), bare=[("1g.10gb", 1)])
    plan = make(gpu, "4g.40gb", "1g.10gb")
    assert [f"{line.action} {line.what}" for line in plan.changes] == [
        "destroy 1g.10gb in slot 0",
        "destroy 1g.10gb in slot 1",
        "create 4g.40gb in slots 0 to 3",
    ]
    assert "keep 1g.10gb in slot 6" in say(plan)
    assert plan.changes[0].gpu_instance == 1
    assert plan.changes[0].device == "MIG-1"


def test_a_place_that_was_asked_for_is_where_it_is() -> None:
    """An instance of the same profile elsewhere does not count for it."""
    gpu = make_gpu(H100, ("3g.40gb", 0))
    assert say(make(gpu, "3g.40gb@4")) == ["destroy 3g.40gb in slots 0 to 3", "create 3g.40gb in slots 4 to 7"]
    assert say(make(gpu, "3g.40gb")) == ["keep 3g.40gb in slots 0 to 3"]
    assert say(make(gpu, "3g.40gb@0", "3g.40gb")) == ["keep 3g.40gb in slots 0 to 3", "create 3g.40gb in slots 4 to 7"]


def test_what_was_left_half_made_is_finished() -> None:
    """Where it is declared; else it goes as what is idle does."""
    gpu = make_gpu(H100, bare=[("3g.40gb", 4)])
    (line,) = make(gpu, "3g.40gb").lines
    assert (line.action, line.gpu_instance, line.profile_id) == ("finish", 10, 9)
    assert say(make(gpu)) == ["destroy 3g.40gb in slots 4 to 7"]


def test_who_is_in_an_instance_keeps_it() -> None:
    """Declared or not; who stands in the way is named, and so is why."""
    gpu = make_gpu(H100, ("1g.10gb", 0), ("3g.40gb", 4))
    inside = {1: ("tenant vision",), 2: ("process 42",)}
    plan = make(gpu, "4g.40gb@0", "3g.40gb", occupied=inside)
    assert say(plan) == [
        "keep 1g.10gb in slot 0",
        "keep 3g.40gb in slots 4 to 7",
        "impossible 4g.40gb in slots 0 to 3",
    ]
    assert plan.lines[0].why == "not declared, occupied by tenant vision"
    assert plan.lines[2].why == "in the way: 1g.10gb in slot 0 has tenant vision"
    anywhere = make(gpu, "4g.40gb", "3g.40gb", occupied=inside)
    assert "tenant vision" in anywhere.impossible[0].why
    assert say(make(gpu, "2g.20gb", occupied=inside))[-1] == "create 2g.20gb in slots 2 to 3"


@pytest.mark.parametrize(
    ("parts", "what", "why"),
    [
        (["3g.71gb"], "3g.71gb", "this GPU has no 3g.71gb; did you mean '3g.40gb'? It has 1g.10gb"),
        (["3g.40gb@2"], "3g.40gb@2", "3g.40gb can begin at 0 or 4, not at 2"),
        (["3g.40gb@0", "2g.20gb@2"], "2g.20gb@2", "it overlaps 3g.40gb in slots 0 to 3; 2g.20gb could begin at 4"),
        (["4g.40gb", "4g.40gb"], "4g.40gb, 4g.40gb", "2 of 4g.40gb on a GPU that takes 1; what fits: 4g.40gb"),
        (["7g.80gb", "1g.10gb"], "7g.80gb, 1g.10gb", "9 slots are needed and 8 of 8 are free; what fits: 7g.80gb"),
        (["4g.40gb", "1g.10gb@1"], "4g.40gb, 1g.10gb@1", "no such place is left beside 1g.10gb in slot 1; what fits"),
        (["1g.10gb+me", "1g.10gb+me@2"], "1g.10gb+me, 1g.10gb+me@2", "2 of 1g.10gb+me on a GPU that takes 1"),
    ],
)
def test_what_no_such_card_can_be_says_so_and_what_comes_nearest(parts: list[str], what: str, why: str) -> None:
    """Whatever is there now; nothing else is planned then."""
    plan = make(make_gpu(H100, ("2g.20gb", 0)), *parts)
    (line,) = plan.lines
    assert (line.action, line.what) == ("impossible", what)
    assert why in line.why
    assert plan.changes == ()


@pytest.mark.parametrize(
    ("changes", "what", "mend"),
    [
        ({"mig": "unsupported"}, "has no MIG", "take it out of [devices.partitions]"),
        ({"mig": "off"}, "MIG is off", f"nvidia-smi -i {UUID} -mig 1"),
        ({"mig": "off", "mig_pending": True, "note": "MIG is off, and will be on"}, "will be on", "nvidia-smi -r"),
        ({"mig_pending": True, "note": "MIG is on, and will be off"}, "will be off", "-mig 1"),
        ({"trouble": Trouble("the GPU is lost", "reboot")}, "the GPU is lost", "reboot"),
    ],
)
def test_a_gpu_that_takes_no_instances_says_what_to_do(changes: dict[str, object], what: str, mend: str) -> None:
    """Its mode is its operator's, also when that is half changed."""
    plan = make(replace(make_gpu(H100), **changes), "1g.10gb")  # type: ignore[arg-type]
    assert plan.lines == ()
    assert plan.trouble is not None
    assert what in plan.trouble.what
    assert mend in plan.trouble.mend


def test_instances_of_which_nobody_knows_the_place_stop_everything() -> None:
    """What is planned beside them might overlap."""
    gpu = make_gpu(H100, ("1g.10gb", 0))
    blind = replace(gpu, slices=(replace(gpu.slices[0], placement=None),))
    plan = make(blind, "1g.10gb")
    assert plan.trouble is not None
    assert "does not tell where" in plan.trouble.what


def test_by_itself_all_is_made_or_nothing() -> None:
    """Beside what is idle and undeclared too; where something would have to go, that is said."""
    gpu = make_gpu(H100, ("2g.20gb", 4))
    assert say(make(gpu, "4g.40gb", gently=True)) == ["keep 2g.20gb in slots 4 to 5", "create 4g.40gb in slots 0 to 3"]
    gentle, full = make(gpu, "3g.40gb", "4g.40gb", gently=True), make(gpu, "3g.40gb", "4g.40gb")
    assert explain(gentle, full).startswith(f"{UUID}: not cut as declared: 2g.20gb in slots 4 to 5 would have to go")
    assert explain(make(gpu, "4g.40gb", gently=True), make(gpu, "4g.40gb")) == ""


def test_what_may_be_anywhere_is_made_where_somebody_sits() -> None:
    """Unless it is there already, or that would leave something out."""
    seat = Placed(6, 1, "1g.10gb")

    def make_seated(*parts: str, there: tuple[tuple[str, int], ...] = ()) -> list[str]:
        (declared,) = read_partitions({"0": list(parts)})
        return say(make_plan("0", make_gpu(H100, *there), declared.parts, {}, seated=[seat]))

    assert make_seated("1g.10gb") == ["create 1g.10gb in slot 6"]
    assert make_seated("1g.10gb", there=(("1g.10gb", 2),)) == ["keep 1g.10gb in slot 2"]
    assert "create 1g.10gb in slot 6" not in make_seated("1g.10gb", "3g.40gb@4")
    assert make_seated("2g.20gb") == ["create 2g.20gb in slots 0 to 1"]


def test_occupants_are_tenants_and_processes_wherever_nobody_can_tell() -> None:
    """A process that may be anywhere is everywhere, and so is one more than are listed."""
    gpu = make_gpu(H100, ("1g.10gb", 0), ("1g.10gb", 1))
    there = replace(gpu, processes=(Process(42, None, 2), Process(43, None, 2)))
    on_it, elsewhere = Seat((UUID,), placed=Placed(0, 1, "1g.10gb")), Seat(("GPU-other",))
    seats = list_seats([Resident("vision", Request("mig"), on_it), Resident("other", Request("exclusive"), elsewhere)])
    assert find_occupants(there, seats) == {1: ("tenant vision",), 2: ("process 42", "process 43")}
    lost = replace(gpu, processes=(Process(44, None),))
    assert find_occupants(lost, {}) == {1: ("process 44",), 2: ("process 44",)}
    crowd = replace(gpu, processes=tuple(Process(pid, None, 2) for pid in range(256)))
    assert find_occupants(crowd, {})[1] == ("more processes than are listed",)
    assert find_occupants(gpu, {}) == {}


def test_a_token_stands_for_what_would_be_done() -> None:
    """It is another one when something else would be, or when it is possible at last."""
    empty, other = make_gpu(H100), make_gpu(H100, ("1g.10gb", 0))
    tokens = {
        make_token([make(empty, "4g.40gb")]),
        make_token([make(other, "4g.40gb")]),
        make_token([make(other, "4g.40gb", occupied={1: ("process 1",)})]),
        make_token([make(empty)]),
    }
    assert len(tokens) == 4
    assert make_token([make(empty, "4g.40gb")]) in tokens


@st.composite
def cases(draw: st.DrawFn) -> tuple[Gpu, Declaration, set[int], bool]:
    """A card that is cut somehow, what is declared, who is in, and whether anything may go."""
    card = draw(st.sampled_from([A100, A30, H100, H200, B200]))
    there: list[tuple[str, int]] = []
    taken: set[int] = set()
    for row in draw(st.lists(st.sampled_from(card.profiles), max_size=4)):
        name = row[7].removeprefix("MIG ")
        places = [tuple(map(int, place.split(":"))) for place in row[6].split(",")]
        free = [(start, size) for start, size in places if not taken & set(range(start, start + size))]
        media = "+me" in name and any("+me" in other for other, _ in there)
        if free and not media and sum(other == name for other, _ in there) < row[3]:
            start, size = draw(st.sampled_from(free))
            taken |= set(range(start, start + size))
            there.append((name, start))
    names = [row[7].removeprefix("MIG ") for row in card.profiles]
    part = st.builds(
        lambda name, at: f"{name}{at}", st.sampled_from(names), st.sampled_from(["", "", "@0", "@2", "@4"])
    )
    parts = draw(st.lists(part, max_size=4, unique_by=lambda text: text.partition("@")[2] or object()))
    (declared,) = read_partitions({"0": parts})
    return make_gpu(card, *there), declared, draw(st.sets(st.integers(1, 4))), draw(st.booleans())


@given(cases())
def test_no_plan_ever_touches_who_is_in_or_overlaps(case: tuple[Gpu, Declaration, set[int], bool]) -> None:
    """Whatever is there and declared; what it makes can be made in its order, and after it there is nothing to do."""
    gpu, declared, busy, gently = case
    occupied = dict.fromkeys(busy, ("somebody",))
    plan = make_plan("0", gpu, declared.parts, occupied, destroys_nothing=gently)
    gone = {line.gpu_instance for line in plan.lines if line.action == "destroy"}
    assert not gone & busy
    assert not (gently and gone)
    table = make_table(gpu)
    assert table is not None
    after = [(line.profile, line.placement) for line in plan.lines if line.action in ("keep", "create", "finish")]
    slots = [slot for _, place in after if place for slot in range(place.start, place.start + place.size)]
    assert len(slots) == len(set(slots))
    for name, place in after:
        profile = table.find(name)
        assert profile is not None
        assert place is not None
        assert place.start in profile.starts
        assert sum(other == name for other, _ in after) <= profile.limit
    if not plan.impossible:
        then = make_gpu_like(gpu, after)
        assert make_plan("0", then, declared.parts, {}, destroys_nothing=True).changes == ()


def make_gpu_like(gpu: Gpu, there: Sequence[tuple[str, Placement | None]]) -> Gpu:
    """The same card cut into these."""
    ids = {profile.name.removeprefix("MIG "): profile.id for profile in gpu.profiles}
    slices = tuple(
        Slice(f"MIG-{n}", "mig", name, 1, "x", UUID, profile=ids[name], placement=place, gpu_instance=n)
        for n, (name, place) in enumerate(there, 1)
    )
    return replace(gpu, slices=slices)
