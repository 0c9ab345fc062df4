"""Where MIG instances can be: against the tables of a real card, and against brute force."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.supervisor.placement.geometry import (
    Instance,
    Misfit,
    Placed,
    count_places,
    cover,
    list_places,
    plan,
    search,
)
from bedsit.supervisor.placement.profiles import TABLES, Profile, Table

ROOT = Path(__file__).parent.parent.parent.parent
H100 = TABLES["H100 80GB"]
MODELS = sorted(TABLES)


def brute(table: Table, wanted: Sequence[str], taken: Sequence[Placed]) -> bool:
    """Whether some combination of starts works: all are tried."""
    if sum(Counter([*wanted, *(p.profile for p in taken)])[p.name] for p in table.profiles if p.has_media) > 1:
        return False

    def fill(left: Sequence[str], every: list[Placed]) -> bool:
        if sum(place.size for place in every) != cover(every).bit_count():
            return False
        profile = table.find(left[0]) if left else None
        if profile is None:
            return not left
        return any(fill(left[1:], [*every, Placed(start, profile.size, profile.name)]) for start in profile.starts)

    return fill(wanted, [*taken])


@st.composite
def geometries(draw: st.DrawFn, most: int = 5) -> tuple[Table, list[str], list[Placed]]:
    """A card, some of what is taken on it, and what is wanted beside that."""
    table = TABLES[draw(st.sampled_from(MODELS))]
    taken: list[Placed] = []
    for name in draw(st.lists(st.sampled_from(table.names), max_size=3)):
        profile = table.find(name)
        assert profile is not None
        places = list(list_places(table, profile, taken))
        if places:
            taken.append(draw(st.sampled_from(places)))
    return table, draw(st.lists(st.sampled_from(table.names), max_size=most)), taken


def recorded() -> Iterator[dict[str, object]]:
    """The profiles that a real H100 named."""
    report = json.loads((ROOT / "docs/gpu/2026-11-26-h100.json").read_text())
    yield from next(check for check in report["checks"] if check["name"] == "T16")["data"]["profiles"]


def test_the_table_of_the_h100_is_what_a_real_one_says() -> None:
    """Names, starts, sizes, memory and how many: all as its driver answered."""
    measured = {
        Profile(
            str(each["name"]).removeprefix("MIG "),
            each["memorySizeMB"] << 20,  # type: ignore[operator]
            each["placements"][0][1],  # type: ignore[index]
            tuple(start for start, _ in each["placements"]),  # type: ignore[attr-defined]
            each["instanceCount"],  # type: ignore[arg-type]
        )
        for each in recorded()
    }

    assert set(H100.profiles) == measured


@pytest.mark.parametrize("model", MODELS)
def test_tables_make_sense(model: str) -> None:
    """Everything lies on the card, the largest is all of it, and no more memory is given out than that has."""
    table = TABLES[model]
    largest = table.profiles[-1]

    assert largest.starts == (0,)
    assert largest.size == table.slots
    for profile in table.profiles:
        assert all(start + profile.size <= table.slots for start in profile.starts)
        assert profile.memory_bytes * (table.slots // profile.size) <= largest.memory_bytes * 1.01
        assert profile.has_media or count_places(profile, 0) == profile.limit


@pytest.mark.parametrize("model", [model for model in MODELS if model != "A30"])
def test_every_order_of_one_two_and_four_is_found(model: str) -> None:
    """By first fit it is one of six."""
    one, two, four = (TABLES[model].names[at] for at in (0, 3, 5))
    for order in permutations((one, two, four)):
        places = search(TABLES[model], order)

        assert not isinstance(places, Misfit)
        assert [place.profile for place in places] == list(order)


@pytest.mark.parametrize(
    ("wanted", "code", "words", "fits"),
    [
        (["4g.40gb", "4g.40gb"], "limit", "2 of 4g.40gb on a GPU that takes 1", ["4g.40gb"]),
        (["3g.40gb", "3g.40gb", "1g.10gb"], "slots", "9 slots are needed and 8 of 8 are free", ["3g.40gb", "3g.40gb"]),
        (["1g.10gb+me"] * 2, "limit", "2 of 1g.10gb+me on a GPU that takes 1", ["1g.10gb+me"]),
        (["1g.18gb", "1g.10gb"], "profile", "this GPU has no 1g.18gb", ["1g.10gb"]),
        (
            ["2g.20gb", "2g.20gb", "2g.20gb", "1g.10gb", "1g.10gb"],
            "starts",
            "1g.10gb takes 1 in a row from one of 0, 1, 2, 3, 4, 5, 6 on, and no such place is left beside the others",
            ["2g.20gb", "2g.20gb", "2g.20gb", "1g.10gb"],
        ),
        (["1g.10gb"] * 1000, "limit", "1000 of 1g.10gb on a GPU that takes 7", ["1g.10gb"] * 7),
    ],
)
def test_what_cannot_be_says_why_and_what_would_fit(wanted: list[str], code: str, words: str, fits: list[str]) -> None:
    """The largest part of it that does."""
    misfit = search(H100, wanted)

    assert isinstance(misfit, Misfit)
    assert (misfit.code, sorted(misfit.fits)) == (code, sorted(fits))
    assert misfit.words.startswith(words)


def test_a_taken_place_is_named() -> None:
    """Who reads it knows what stands in the way."""
    misfit = search(H100, ["4g.40gb"], [Placed(1, 1, "1g.10gb")])

    assert isinstance(misfit, Misfit)
    assert misfit.words == "4g.40gb takes 4 in a row from 0 on, and no such place is left beside 1g.10gb in slot 1"


@given(geometries())
def test_found_or_impossible_is_what_brute_force_says(case: tuple[Table, list[str], list[Placed]]) -> None:
    """And what is found overlaps nothing, begins where it may, and is what was asked for."""
    table, wanted, taken = case
    found = search(table, wanted, taken)

    assert isinstance(found, tuple) == brute(table, wanted, taken)
    if isinstance(found, tuple):
        assert [place.profile for place in found] == wanted
        assert cover([*found, *taken]).bit_count() == sum(place.size for place in [*found, *taken])
        for place in found:
            profile = table.find(place.profile)
            assert profile is not None
            assert place.start in profile.starts
    else:
        assert brute(table, found.fits, taken)
        assert Counter(found.fits) < Counter(wanted)


@given(geometries(most=7), st.sets(st.integers(0, 6)))
def test_a_plan_never_touches_what_is_occupied(case: tuple[Table, list[str], list[Placed]], occupied: set[int]) -> None:
    """It ends in the declared geometry, or says what it refuses; what can stay does."""
    table, declared, taken = case
    there = [Instance(placed, index in occupied) for index, placed in enumerate(taken)]
    made = plan(table, declared, there)
    kept = {each.placed for each in there if each.is_occupied}

    assert kept <= set(made.keep)
    assert set(made.keep) | set(made.remove) == set(taken)
    after = [*made.keep, *made.create]
    assert cover(after).bit_count() == sum(place.size for place in after)
    extra = Counter(place.profile for place in kept) - Counter(declared)
    assert Counter(place.profile for place in after) + Counter(made.refuse) == Counter(declared) + extra
    assert bool(made.refuse) == (made.why is not None)
    if made.refuse:
        assert not brute(table, list((Counter(declared) - Counter(p.profile for p in kept)).elements()), sorted(kept))


def test_a_plan_keeps_what_is_declared_and_makes_what_is_missing() -> None:
    """The idle instance that stands where it can is kept, the one in the way goes."""
    there = [Instance(Placed(0, 1, "1g.10gb"), False), Instance(Placed(6, 1, "1g.10gb"), False)]
    made = plan(H100, ["4g.40gb", "1g.10gb"], there)

    assert made.keep == (Placed(6, 1, "1g.10gb"),)
    assert made.remove == (Placed(0, 1, "1g.10gb"),)
    assert made.create == (Placed(0, 4, "4g.40gb"),)


def test_a_place_that_was_asked_for_is_taken_or_blocked() -> None:
    """An instance elsewhere does not count for it; where somebody is in the way it is said to be blocked."""
    place = Placed(4, 4, "3g.40gb")
    there = [Instance(Placed(0, 4, "3g.40gb"), False)]
    made = plan(H100, [], there, [place])

    assert (made.keep, made.remove, made.create) == ((), (there[0].placed,), (place,))
    assert plan(H100, ["3g.40gb"], there, [place]).keep == (there[0].placed,)
    small = Placed(5, 1, "1g.10gb")
    blocked = plan(H100, ["3g.40gb"], [Instance(small, True)], [place])
    assert (blocked.blocked, blocked.create, blocked.keep) == ((place,), (Placed(0, 4, "3g.40gb"),), (small,))
    one = Placed(0, 4, "4g.40gb")
    full = plan(H100, [], [Instance(one, True)], [one, Placed(4, 4, "3g.40gb")])
    assert (full.keep, full.create, full.blocked) == ((one,), (Placed(4, 4, "3g.40gb"),), ())


def test_a_plan_refuses_what_occupied_instances_leave_no_room_for() -> None:
    """And says which."""
    made = plan(H100, ["4g.40gb", "3g.40gb"], [Instance(Placed(0, 4, "3g.40gb"), True)])

    assert (made.keep, made.create, made.refuse) == ((Placed(0, 4, "3g.40gb"),), (), ("4g.40gb",))
    assert made.why is not None
    assert made.why.words.endswith("no such place is left beside 3g.40gb in slots 0 to 3")


@given(geometries(most=0))
def test_room_is_counted_as_the_search_finds_it(case: tuple[Table, list[str], list[Placed]]) -> None:
    """As many of one profile as count_places says, and not one more."""
    table, _, taken = case
    for profile in table.profiles:
        count = count_places(profile, cover(taken))
        if profile.limit > 1 and not any(place.profile == profile.name for place in taken):
            count = min(count, profile.limit)
            assert isinstance(search(table, [profile.name] * count, taken), tuple)
            assert isinstance(search(table, [profile.name] * (count + 1), taken), Misfit)
