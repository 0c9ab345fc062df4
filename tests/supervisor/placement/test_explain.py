"""What is said about a seat is true, what would make a request fit above all."""

from dataclasses import replace

from hypothesis import given

from bedsit.supervisor.placement.explain import explain
from bedsit.supervisor.placement.place import Placement, place
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import USUAL, Rules
from bedsit.supervisor.placement.seating import Seating
from tests_support.boxes import ask, cut, fill, filled, nodes, requests, shared, whole

BOX = fill(
    Seating((cut("gpu0"), whole("gpu1"), whole("gpu2")), nodes((0, 1, 2, 3))),
    {
        "small": ask("mig:1g.10gb"),
        "half": ask("mig:3g.40gb"),
        "quarter": ask("gpu:0.25", 8, service_class="realtime"),
        "alone": ask("gpu"),
        "cores": ask("cpu:3"),
    },
    USUAL,
)


def helps(tenant: str, request: Request) -> list[str]:
    """What would make it fit, in words."""
    return [change.words for change in explain(BOX, tenant, request).changes]


@given(filled(), requests("x"))
def test_what_would_make_it_fit_does(case: tuple[Seating, Rules], request_: Request) -> None:
    """Each by itself, tried here once more; and whoever has a seat needs nothing."""
    seating, rules = case
    said = explain(seating, "x", request_, rules)
    for change in said.changes:
        assert isinstance(place(change.apply(seating), "x", change.request, rules), Placement), change.words
        assert change.words in said.sentence
    placed = place(seating, "x", request_, rules)
    assert said.seat == (placed.seat if isinstance(placed, Placement) else None)
    assert not (said.seat and said.changes)
    assert said.seat or said.reasons


@given(filled(), requests("x"))
def test_a_change_changes_one_thing(case: tuple[Seating, Rules], request_: Request) -> None:
    """Somebody leaves, or something else is asked for, or the box is another one."""
    seating, rules = case
    for change in explain(seating, "x", request_, rules).changes:
        assert [change.request != request_, bool(change.leave), change.card is not None].count(True) == 1
        assert set(change.leave) <= seating.tenants
        if change.card is not None:
            assert not any(change.card.name in each.seat.devices for each in seating.residents)


def test_who_has_a_seat_reads_why_there() -> None:
    """And why not elsewhere."""
    said = explain(BOX, "x", ask("mig:1g.10gb"))

    assert said.seat is not None
    assert said.sentence == (
        "x has gpu0, 1g.10gb in slot 4 for mig:1g.10gb: of 2 seats the one that leaves most room for others; "
        "gpu1, gpu2: not cut by MIG"
    )
    assert ": the only seat; " in explain(BOX, "x", ask("mig:2g.20gb")).sentence


def test_who_has_none_reads_why_and_what_would_help() -> None:
    """A smaller profile, a tenant that leaves, another GPU."""
    said = explain(BOX, "x", ask("mig:4g.40gb"))

    assert said.seat is None
    assert said.sentence.startswith("x has no seat for mig:4g.40gb: gpu0: no place, ")
    assert [change.what for change in said.changes] == ["ask", "leave", "box"]


def test_less_is_the_most_that_fits() -> None:
    """To the thousandth of a share, the core and the MiB."""
    assert helps("x", ask("gpu:0.9", 8, service_class="realtime"))[0] == "it asked for gpu:0.75"
    assert helps("x", ask("cpu:4")) == ["it asked for cpu:1", "cores left"]
    memory = helps("x", ask("gpu:0.5", 75, service_class="realtime"))[0]
    assert memory == "it asked for 71902 MiB of memory"


def test_who_is_not_trusted_is_offered_walls() -> None:
    """Or trust, which is the operator's to give."""
    assert helps("x", replace(ask("gpu:0.25", 4), trusted=False)) == ["it were trusted", "it asked for mig:1g.10gb"]


def test_who_insists_reads_what_it_costs() -> None:
    """A model, company, distance."""
    assert "it took any GPU, not only a B200" in helps("x", ask("gpu:0.1", 1, model="B200"))
    assert "it need not be near anybody" in helps("x", ask("gpu:0.1", 1, near=["half"]))
    assert "it need not be apart from anybody" in helps("x", ask("gpu:0.1", 1, apart=["quarter"]))


def test_an_empty_gpu_may_be_cut() -> None:
    """And one that is cut and empty the other way round."""
    (change,) = explain(Seating((whole("gpu0"),)), "x", ask("mig:1g.10gb")).changes
    assert change.words == "gpu0, which is empty, were cut by MIG"
    assert (
        explain(Seating((cut("gpu0"),)), "x", ask("gpu")).changes[-1].words
        == "gpu0, which is empty, were not cut by MIG"
    )


def test_a_box_of_nothing_has_no_advice() -> None:
    """One sentence all the same."""
    assert (
        explain(Seating(), "x", ask("gpu")).sentence
        == "x has no seat for gpu: this box has no GPU; no single change helps"
    )


def test_of_shared_cores_a_smaller_part_may_help() -> None:
    """Nothing is said of trust, memory or GPUs then."""
    box = Seating((shared("turns", 2),), nodes((0, 1)))
    full = fill(box, {"a": ask("core:0.6", service_class="realtime")}, USUAL)
    said = explain(full, "x", ask("core:0.9", service_class="realtime", trusted=False))
    assert [each.words for each in said.changes] == ["it asked for core:0.4", "it were of class batch", "a left"]
    assert "turns: 0.4 of its time is left, and 0.9 would be counted" in said.sentence
