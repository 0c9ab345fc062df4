"""Who sits where: by hand, and for whatever box, tenants and rules are drawn."""

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.supervisor.placement.geometry import Placed, cover
from bedsit.supervisor.placement.place import Placement, Refusal, place, place_all
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import USUAL, Rules
from bedsit.supervisor.placement.score import learn_mix
from bedsit.supervisor.placement.seating import CONTEXT_BYTES, LEAST_BYTES, Seat, Seating
from bedsit.supervisor.placement.seats import find_seats
from tests_support.boxes import GIB, ask, boxes, cut, fill, filled, nodes, requests, rules, shared, whole

ONE = Rules(share_factors={})


def seat_of(seating: Seating, tenant: str, request: Request, rules: Rules = USUAL) -> Seat | None:
    """Its seat, if it has one."""
    placed = place(seating, tenant, request, rules)
    return placed.seat if isinstance(placed, Placement) else None


def codes(seating: Seating, tenant: str, request: Request, rules: Rules = USUAL) -> list[str]:
    """Why it has none, by device."""
    placed = place(seating, tenant, request, rules)
    assert isinstance(placed, Refusal)
    return [f"{reason.device} {reason.code}".strip() for reason in placed.reasons]


def check(seating: Seating, rules: Rules) -> None:
    """What holds in every box, whoever sits in it."""
    for use in seating.uses:
        kinds = {each.request.kind for each in use.residents}
        assert use.mask.bit_count() == sum(place.size for place in use.taken)
        assert (use.card.table is not None) == (kinds == {"mig"}) or not kinds
        assert "exclusive" not in kinds or len(use.residents) == 1
        assert use.charged_milli(rules) <= 1000
        assert use.guaranteed_milli <= 1000
        assert use.promised_bytes <= use.card.memory_bytes * rules.memory_factor
        for each in use.residents:
            assert each.request.trusted or each.request.kind != "timeslice"
            assert use.card.is_model(each.request.model)
            assert each.request.apart.isdisjoint(use.tenants)
            if each.seat.placed is not None:
                profile = use.card.table.find(each.seat.placed.profile) if use.card.table else None
                assert profile is not None
                assert each.seat.placed.start in profile.starts
                assert each.request.memory_bytes < profile.memory_bytes
            if each.request.kind == "timeslice" and each.request.memory_bytes:
                assert each.seat.memory_bytes == each.request.memory_bytes + CONTEXT_BYTES
            assert each.request.kind != "core" or each.seat.cores == use.card.cores
    alone = [each for each in seating.residents if not each.seat.is_shared]
    cores = [core for each in alone for core in each.seat.cores]
    assert len(cores) == len(set(cores))
    assert all(len(each.seat.cores) == each.request.cores for each in alone)


@given(filled())
def test_no_box_is_ever_promised_twice(case: tuple[Seating, Rules]) -> None:
    """Instances, cores, guarantees, trust, company and memory, whoever came in whatever order."""
    check(*case)


@given(filled(), requests("x"))
def test_who_is_not_trusted_never_shares_a_gpu_in_time(case: tuple[Seating, Rules], request_: Request) -> None:
    """And whoever shares one may sit beside such a tenant on MIG only."""
    seating, rules = case
    hostile = replace(request_, trusted=False)
    for seat in find_seats(seating, "x", hostile, rules).seats:
        use = next((use for use in seating.uses if use.card.name in seat.devices), None)
        assert not hostile.wants_gpu or (use is not None and (use.card.table is not None or not use.residents))


@given(filled(), requests("x"))
def test_a_seat_is_one_of_those_there_are_and_a_refusal_has_a_reason_for_every_gpu(
    case: tuple[Seating, Rules], request_: Request
) -> None:
    """Nobody is sent away without being told."""
    seating, rules = case
    found, placed = find_seats(seating, "x", request_, rules), place(seating, "x", request_, rules)
    if isinstance(placed, Placement):
        assert placed.seat in found.seats
        check(seating.seat("x", request_, placed.seat), rules)
    else:
        assert not found.seats
        told = {reason.device for reason in placed.reasons}
        cards = {card.name for card in seating.cards if card.is_gpu == request_.wants_gpu}
        assert told == {""} or told >= (cards if request_.kind != "cpu" else {"node0"})


@given(boxes(), st.lists(requests(), max_size=4), rules())
def test_of_many_as_many_are_seated_as_any_order_seats(seating: Seating, wanted: list[Request], drawn: Rules) -> None:
    """Where that is claimed: against every order, each placed where it costs least."""
    asks = {f"t{index}": request.shape for index, request in enumerate(wanted)}
    together = place_all(seating, asks, drawn)
    for tenant, seat in together.seats.items():
        seating = seating.seat(tenant, asks[tenant], seat)
    check(seating, drawn)
    empty = replace(seating, residents=())
    orders = [fill(empty, {name: asks[name] for name in order}, drawn) for order in permutations(asks)]
    assert together.is_most
    assert len(together.seats) == max(len(each.residents) for each in orders)


def test_a_declared_geometry_is_found_whatever_the_order() -> None:
    """One, two and four on one card, six times."""
    for order in permutations(("mig:1g.10gb", "mig:2g.20gb", "mig:4g.40gb")):
        together = place_all(Seating((cut("gpu0"),)), {device: ask(device) for device in order})
        assert len(together.seats) == 3


def test_a_crowd_is_placed_one_after_the_other() -> None:
    """Without a search that would not end; nothing is claimed of those who are left out."""
    seating = Seating(tuple(cut(f"gpu{index}") for index in range(8)), nodes(tuple(range(300))))
    crowd = {f"t{index}": ask("cpu:1") for index in range(290)} | {
        f"m{index}": ask("mig:1g.10gb") for index in range(60)
    }
    together = place_all(seating, crowd)

    assert len(together.seats) == 290 + 56
    assert not together.is_most


def test_an_instance_goes_where_it_takes_least_from_others() -> None:
    """A small one leaves the half whole in which the largest must begin; the second joins it."""
    seating = Seating((cut("gpu0"), cut("gpu1")))
    for tenant in "abc":
        seat = seat_of(seating, tenant, ask("mig:1g.10gb"))
        assert seat is not None
        seating = seating.seat(tenant, ask("mig:1g.10gb"), seat)

    assert {each.seat.devices for each in seating.residents} == {("gpu0",)}
    assert cover(seating.uses[0].taken) & 0b1111 == 0


def test_what_is_asked_for_decides() -> None:
    """A whole GPU is kept for those who take one, and is not where nobody does."""
    seating = Seating((whole("gpu0"), whole("gpu1", "H200")))
    half = ask("gpu:0.5", 10)
    for model, device in (("H200", "gpu0"), ("H100", "gpu1")):
        placed = place(seating, "a", half, ONE, learn_mix([ask("gpu", model=model)] * 3))
        assert isinstance(placed, Placement)
        assert (placed.seat.devices, placed.cost) == ((device,), 0.0)


def test_packed_tenants_share_and_spread_ones_do_not_while_they_can() -> None:
    """The operator's choice."""
    seating = Seating((whole("gpu0"), whole("gpu1")), nodes((0, 1), (2, 3, 4)))
    quarter = ask("gpu:0.25", 4)
    for order, device, node in (("pack", "gpu0", "node0"), ("spread", "gpu1", "node1")):
        drawn = Rules(order)  # type: ignore[arg-type]
        one = seating.seat("a", quarter, Seat(("gpu0",), memory_bytes=5 * GIB, is_shared=True))
        seat, cores = seat_of(one, "b", quarter, drawn), seat_of(seating, "c", ask("cpu:1"), drawn)
        assert seat is not None
        assert cores is not None
        assert (seat.devices, cores.devices) == ((device,), (node,))


def test_shares_are_counted_by_class_and_guarantees_in_full() -> None:
    """Four batch tenants take what one realtime tenant does; what is guaranteed is not given twice."""
    seating = Seating((whole("gpu0"),))
    batch = {f"b{index}": ask("gpu:0.5", 1, service_class="batch") for index in range(9)}
    assert len(fill(seating, batch, USUAL).residents) == 8
    assert (
        len(
            fill(
                seating, {name: replace(each, service_class="realtime") for name, each in batch.items()}, USUAL
            ).residents
        )
        == 2
    )
    firm = {name: replace(each, min_share_milli=300) for name, each in batch.items()}
    full = fill(seating, firm, USUAL)
    assert len(full.residents) == 3
    assert codes(full, "x", firm["b0"]) == ["gpu0 min_share"]


def test_memory_counts_with_the_context_of_each() -> None:
    """Nine quotas of 8 GiB are 72 GiB, and 5 more for their contexts: ten do not fit into 79."""
    small = {f"t{index}": ask("gpu:0.05", 8, service_class="batch") for index in range(12)}
    seating = fill(Seating((whole("gpu0"),)), small, USUAL)

    assert len(seating.residents) == 9
    assert codes(seating, "x", small["t0"]) == ["gpu0 memory"]
    assert len(fill(Seating((whole("gpu0"),)), small, Rules(memory_factor=1.1)).residents) == 10
    assert codes(Seating((cut("gpu0"), whole("gpu1"))), "x", ask("mig:1g.10gb", 9.5)) == ["gpu0 memory", "gpu1 mig_off"]
    assert codes(Seating((whole("gpu0"),)), "x", ask("gpu", 79)) == ["gpu0 memory"]


def test_each_slot_of_a_tenant_has_its_memory_and_its_context() -> None:
    """All that it may have at once are promised; who names no quota shares its part of the card among them."""
    gpu = Seating((whole("gpu0"),))
    three = seat_of(gpu, "a", replace(ask("gpu:0.25", 8), slots=3))
    assert three is not None
    assert (three.memory_bytes, three.slot_bytes) == (3 * (8 * GIB + CONTEXT_BYTES), 8 * GIB + CONTEXT_BYTES)
    part = seat_of(gpu, "a", replace(ask("gpu:0.25"), slots=2))
    assert part is not None
    assert part.memory_bytes == pytest.approx(gpu.cards[0].memory_bytes / 4, abs=4)
    assert codes(gpu, "a", replace(ask("gpu:0.25", 30), slots=3)) == ["gpu0 memory"]


def test_no_part_is_too_small_for_a_context() -> None:
    """Whatever was asked for, there is some memory beside it; a context that was measured counts instead."""
    card = whole("gpu0")
    for request in (ask("gpu:0.001"), replace(ask("gpu:0.25"), memory_bytes=1)):
        for context in (CONTEXT_BYTES, 700 << 20):
            seat = seat_of(Seating((replace(card, context_bytes=context),)), "a", request)
            assert seat is not None
            assert seat.memory_bytes == context + LEAST_BYTES


def test_company_is_kept_both_ways() -> None:
    """Near is with one of those who are there; apart holds for who named and who is named."""
    seating = Seating((whole("gpu0"), whole("gpu1")))
    tenth = ask("gpu:0.1", 1)
    seating = seating.seat("a", tenth, Seat(("gpu0",), memory_bytes=GIB, is_shared=True))
    near, apart = replace(tenth, near=frozenset("az")), replace(tenth, apart=frozenset("a"))

    assert seat_of(seating, "b", near) == Seat(("gpu0",), memory_bytes=GIB + CONTEXT_BYTES, is_shared=True)
    assert seat_of(seating, "b", apart) == Seat(("gpu1",), memory_bytes=GIB + CONTEXT_BYTES, is_shared=True)
    shy = seating.seat("c", apart, Seat(("gpu1",), memory_bytes=GIB, is_shared=True))
    assert codes(shy, "a", replace(tenth, near=frozenset("c"))) == ["gpu0 near", "gpu1 apart"]
    assert seat_of(shy, "d", replace(tenth, near=frozenset("z"))) is not None


def test_every_kind_of_device_says_why_not() -> None:
    """One reason each, for a box of everything."""
    seating = Seating((cut("gpu0", "A30"), whole("gpu1"), whole("gpu2")))
    seating = seating.seat("a", ask("gpu"), Seat(("gpu1",))).seat(
        "b", ask("gpu:0.9", 1), Seat(("gpu2",), memory_bytes=GIB, is_shared=True)
    )

    assert codes(seating, "x", ask("gpu:0.9", 1), ONE) == ["gpu0 mig_on", "gpu1 taken", "gpu2 share"]
    assert codes(seating, "x", ask("gpu")) == ["gpu0 mig_on", "gpu1 taken", "gpu2 taken"]
    assert codes(seating, "x", ask("mig:1g.10gb")) == ["gpu0 profile", "gpu1 mig_off", "gpu2 mig_off"]
    assert codes(seating, "x", ask("gpu", model="B200")) == ["gpu0 model", "gpu1 model", "gpu2 model"]
    assert codes(seating, "x", replace(ask("gpu:0.1"), trusted=False)) == ["trust"]
    assert codes(seating, "x", ask("cpu:1")) == ["cores"]
    assert codes(Seating(nodes=nodes((0, 1))), "x", ask("gpu")) == ["no_gpu"]
    assert codes(Seating(nodes=nodes((0, 1))), "x", ask("cpu:3")) == ["node0 cores"]
    full = seating.seat("c", ask("mig:4g.24gb"), Seat(("gpu0",), placed=Placed(0, 4, "4g.24gb")))
    assert codes(full, "x", ask("mig:1g.6gb"))[0] == "gpu0 places"


def test_a_declared_geometry_is_all_there_is() -> None:
    """Other places of the same card are not used."""
    card = replace(cut("gpu0"), declared=(Placed(0, 1, "1g.10gb"), Placed(4, 4, "3g.40gb")))
    seating = Seating((card,))

    seat = seat_of(seating, "a", ask("mig:1g.10gb"))
    assert seat == Seat(("gpu0",), placed=Placed(0, 1, "1g.10gb"))
    assert codes(seating.seat("a", ask("mig:1g.10gb"), seat), "b", ask("mig:1g.10gb")) == ["gpu0 places"]
    assert codes(seating, "b", ask("mig:2g.20gb")) == ["gpu0 places"]


def test_cores_come_from_one_node_where_one_has_enough() -> None:
    """Else from several."""
    seating = Seating(nodes=nodes((0, 1, 2), (8, 9, 10)))
    seating = seating.seat("a", ask("cpu:1"), Seat(("node0",), cores=(0,)))

    assert seat_of(seating, "b", ask("cpu:3")) == Seat(("node1",), cores=(8, 9, 10))
    assert seat_of(seating, "b", ask("cpu:5")) == Seat(("node1", "node0"), cores=(8, 9, 10, 1, 2))
    assert codes(seating, "b", ask("cpu:6")) == ["node0 cores", "node1 cores"]


def test_a_model_is_named_by_words() -> None:
    """And not by parts of them."""
    assert whole("gpu0", "H200").is_model("h200")
    assert whole("gpu0").is_model("H100 80GB")
    assert not whole("gpu0").is_model("H10")
    assert not whole("gpu0").is_model("H100 96GB")


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_below_one_is_refused(factor: float) -> None:
    """As is one that is no number."""
    with pytest.raises(ValueError, match="from 1 on"):
        Rules(memory_factor=factor)
    with pytest.raises(ValueError, match="from 1 on"):
        Rules(share_factors={"batch": factor})


def test_cores_are_shared_without_trust_and_without_memory() -> None:
    """What keeps tenants apart there is the kernel; shares count as on a GPU, each class by its factor."""
    seating = Seating((whole("gpu0"), shared("turns", 2, 3)))
    half = ask("core:0.5", trusted=False, service_class="realtime")
    seat = seat_of(seating, "a", half)
    assert seat == Seat(("turns",), cores=(2, 3), is_shared=True)

    full = fill(seating, {"a": half, "b": half}, USUAL)
    assert codes(full, "c", ask("core:0.1", service_class="realtime")) == ["turns share"]
    assert len(fill(seating, {f"t{i}": ask("core:0.25") for i in range(9)}, USUAL).residents) == 8
    assert codes(Seating((whole("gpu0"),)), "c", half) == ["not_shared"]
    assert codes(Seating((shared("turns", 2),)), "c", ask("gpu")) == ["no_gpu"]


def test_who_is_degraded_takes_nobody_new() -> None:
    """Of a GPU that is cut, only the places that are."""
    fallen = replace(whole("gpu0"), trouble="Xid 79: it has fallen off the bus")
    assert codes(Seating((fallen,)), "a", ask("gpu")) == ["gpu0 degraded"]
    one, two = Placed(0, 1, "1g.10gb"), Placed(1, 1, "1g.10gb")
    card = replace(cut("gpu0"), declared=(two,), broken=((one, "no capability node"),))
    seating = Seating((card,))
    assert seat_of(seating, "a", ask("mig:1g.10gb")) == Seat(("gpu0",), placed=two)
    full = seating.seat("a", ask("mig:1g.10gb"), Seat(("gpu0",), placed=two))
    assert codes(full, "b", ask("mig:1g.10gb")) == ["gpu0 degraded", "gpu0 places"]
