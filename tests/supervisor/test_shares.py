"""Guaranteed parts of the processors as weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.supervisor.shares import Claim, weigh

SLOTS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(1, 1000), st.sampled_from((0.0, 0.0, 0.05, 0.15))), max_size=40
)


def part(weights: dict[str, int], claims: dict[str, Claim], tenant: str) -> float:
    """What a tenant has when every slot is busy."""
    return sum(weight for slot, weight in weights.items() if claims[slot].tenant == tenant) / sum(weights.values())


def test_without_a_promise_every_slot_has_its_own_weight() -> None:
    """And nothing is scaled."""
    assert weigh({"s1": Claim("a", 100), "s2": Claim("b", 10_000), "s3": Claim("b", 1)}) == {
        "s1": 100,
        "s2": 10_000,
        "s3": 1,
    }
    assert weigh({}) == {}


def test_who_was_promised_more_than_its_weight_gives_is_made_heavier() -> None:
    """As heavy as it takes; the others stay as they are."""
    claims = {f"s{number}": Claim(f"t{number}", 100) for number in range(9)} | {"s": Claim("a", 100, 0.5)}

    assert weigh(claims) == {f"s{number}": 100 for number in range(9)} | {"s": 900}


def test_who_is_heavy_enough_stays_as_it_is() -> None:
    """Alone, or with more weight than its promise needs."""
    assert weigh({"s": Claim("a", 100, 0.9)}) == {"s": 100}
    assert weigh({"s1": Claim("a", 300, 0.5), "s2": Claim("b", 100)}) == {"s1": 300, "s2": 100}


def test_slots_of_one_tenant_have_its_part_together() -> None:
    """However many they are."""
    claims = {"s1": Claim("a", 100, 0.5), "s2": Claim("a", 100, 0.5), **{f"o{i}": Claim("b", 100) for i in range(8)}}
    weights = weigh(claims)

    assert (weights["s1"], weights["s2"], part(weights, claims, "a")) == (400, 400, 0.5)


def test_more_than_the_kernel_takes_makes_the_others_lighter() -> None:
    """The proportion is what counts."""
    claims = {f"o{number}": Claim("b", 1000) for number in range(50)} | {"s": Claim("a", 100, 0.9)}
    weights = weigh(claims)

    assert max(weights.values()) == weights["s"] == 10_000
    assert part(weights, claims, "a") == pytest.approx(0.9, abs=0.01)


def test_where_everything_is_promised_the_others_have_a_hundredth() -> None:
    """Nobody is stopped altogether."""
    claims = {"s1": Claim("a", 100, 0.6), "s2": Claim("b", 100, 0.4), "s3": Claim("c", 100)}
    weights = weigh(claims)

    assert part(weights, claims, "c") == pytest.approx(0.01, abs=0.002)
    assert part(weights, claims, "a") / part(weights, claims, "b") == pytest.approx(1.5, abs=0.01)


@given(SLOTS)
def test_every_promise_is_kept(drawn: list[tuple[str, int, float]]) -> None:
    """Whoever is there, to a hundredth; a tenant has one promise."""
    promises = {tenant: share for tenant, _, share in drawn}
    claims = {f"s{i}": Claim(tenant, weight, promises[tenant]) for i, (tenant, weight, _) in enumerate(drawn)}
    weights = weigh(claims)

    assert all(1 <= weight <= 10_000 for weight in weights.values())
    for tenant, share in promises.items():
        assert part(weights, claims, tenant) >= share - 0.01
    if not any(promises.values()):
        assert weights == {slot: claim.weight for slot, claim in claims.items()}
