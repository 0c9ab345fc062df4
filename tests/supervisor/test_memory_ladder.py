"""Who is told and who has to end for GPU memory, by numbers alone; and whose numbers they are."""

from typing import Any

import pytest

from bedsit.supervisor.devices.model import Box, Gpu, Process, Slice
from bedsit.supervisor.memory.kinds import SLACK_BYTES
from bedsit.supervisor.memory.ladder import Ladder, Use
from bedsit.supervisor.memory.uses import measure, sum_by_slot
from bedsit.supervisor.placement.seating import Seat

MIB, GIB = 1 << 20, 1 << 30
QUOTA = 4 * GIB
FAR = QUOTA + SLACK_BYTES + 1


def judge(ladder: Ladder, **used: int) -> list[tuple[str, str]]:
    """What follows from one look."""
    return [(each.slot, each.what) for each in ladder.judge({slot: Use(byte, QUOTA) for slot, byte in used.items()})]


def test_who_keeps_to_it_hears_nothing() -> None:
    """Up to the last byte."""
    ladder = Ladder()
    assert [judge(ladder, a=QUOTA, b=0) for _ in range(3)] == [[], [], []]


def test_who_is_over_is_told_once_and_again_after_it_was_below() -> None:
    """However long it lasts, nobody is ended for it."""
    ladder = Ladder()
    told = [judge(ladder, a=used) for used in (QUOTA + 1, QUOTA + SLACK_BYTES, QUOTA + 1, QUOTA, QUOTA + 1)]
    assert told == [[("a", "over")], [], [], [], [("a", "over")]]


def test_who_is_far_over_twice_in_a_row_has_to_end() -> None:
    """Once is no reason, nor twice with a look in between that was well; the words have both numbers."""
    ladder = Ladder()
    assert [judge(ladder, a=used, b=0) for used in (FAR, QUOTA, FAR)] == [[("a", "over")], [], [("a", "over")]]
    (verdict,) = ladder.judge({"a": Use(FAR + MIB, QUOTA)})
    assert (verdict.what, verdict.text) == (
        "exceeded",
        "out of GPU memory: 4,353 MiB are used, and 4,096 were given",
    )


def test_a_slot_that_has_gone_is_forgotten() -> None:
    """What comes later under its name begins anew."""
    ladder = Ladder()
    assert [judge(ladder, a=FAR), judge(ladder), judge(ladder, a=FAR)] == [[("a", "over")], [], [("a", "over")]]


def test_processes_count_for_the_slot_that_they_are_in() -> None:
    """Children too; strangers, who has left, and what the driver does not tell for nobody."""
    found = [Process(1, GIB), Process(2, GIB), Process(3, 70 * GIB), Process(4, None), Process(5, MIB)]
    assert sum_by_slot(found, {"a": [1, 2, 9], "b": [4, 5], "c": []}) == {"a": 2 * GIB, "b": MIB, "c": 0}


WHOLE = Slice("GPU-0", "exclusive", "H100", 80 * GIB, "GPU-0", gpu="GPU-0")
SHARED = Seat(("GPU-0",), memory_bytes=2 * QUOTA, is_shared=True, slots=2)


@pytest.mark.parametrize(
    ("seat", "capabilities", "held", "expected"),
    [
        (Seat(("GPU-0",)), (), ["hardware"], ("hardware", 80 * GIB, 1)),
        (SHARED, (), [], ("soft", QUOTA, 2)),
        (SHARED, ("memory_limits",), [], ("driver", QUOTA, 2)),
        (SHARED, ("memory_limits",), ["driver", "soft"], ("soft", QUOTA, 2)),
        (Seat(("GPU-9",), memory_bytes=QUOTA, is_shared=True), (), [], ("soft", QUOTA, 2)),
    ],
    ids=["exclusive", "soft", "driver", "weakest", "gone"],
)
def test_what_is_said_of_a_tenant(
    seat: Seat, capabilities: Any, held: list[Any], expected: tuple[str, int, int]
) -> None:
    """The weakest that one of its slots has, or what its next one would have; what each slot may."""
    gpu = Gpu("GPU-0", 0, mig="off", capabilities=capabilities, slices=(WHOLE,), processes=(Process(1, GIB),))
    part = measure(seat, Box(gpus=(gpu,)), held, {"s1": [1], "s2": [2]})
    assert part is not None
    assert (part.held, part.limit_bytes, part.slots) == expected
    assert part.used_bytes == (GIB if seat.devices == ("GPU-0",) else 0)


def test_who_sits_on_cores_has_no_such_limit() -> None:
    """Nothing is said of it."""
    assert measure(Seat(("fast",), cores=(1,), is_shared=True), Box(), [], {}) is None
