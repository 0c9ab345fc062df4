"""What a seat needs, and what there is to sit on, of a box as it was seen. Pure."""

from dataclasses import replace

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.devices.model import Box, Gpu, Placement, Profile, Slice, Trouble
from bedsit.supervisor.devices.shared import list_shared
from bedsit.supervisor.needs import Needs, NotYetSeen, may_doze, needs_of
from bedsit.supervisor.placement.cards import list_cards, list_nodes
from bedsit.supervisor.placement.geometry import Placed
from bedsit.supervisor.placement.profiles import Table
from bedsit.supervisor.placement.seating import Node, Seat

GIB = 1 << 30
LOST = Trouble("the GPU is lost", "reboot")
#: Not what is on record of any card: what the driver says counts.
ODD = Profile(19, "MIG 1g.11gb", 1, 11 * GIB, 16, 6, tuple(Placement(start, 1) for start in (5, 0, 1)))
WIDE = Profile(9, "MIG 3g.44gb", 3, 44 * GIB, 60, 2, (Placement(0, 4), Placement(4, 4)))


def part(number: int, profile: Profile, start: int) -> Slice:
    """A MIG device of GPU-1."""
    place = next(place for place in profile.placements if place.start == start)
    name, nodes = f"MIG-{number}", ("/dev/nvidiactl", f"/dev/nvidia-caps/nvidia-cap{number}")
    env = {"CUDA_VISIBLE_DEVICES": name}
    return Slice(
        *(name, "mig", name, profile.memory_bytes, name), gpu="GPU-1", profile=profile.id, placement=place,
        nodes=nodes, env=env,
    )  # fmt: skip


ONE, HALF = part(1, ODD, 1), part(2, WIDE, 4)
FULL = Slice(
    *("GPU-0", "exclusive", "H100", 80 * GIB, "GPU-0"), gpu="GPU-0", nodes=("/dev/nvidia0",),
    env={"CUDA_VISIBLE_DEVICES": "GPU-0"},
)  # fmt: skip
WHOLE = Gpu("GPU-0", 0, "NVIDIA H100", memory_bytes=80 * GIB, mig="off", profiles=(WIDE, ODD), slices=(FULL,))
CUT = Gpu("GPU-1", 1, "NVIDIA H100", memory_bytes=80 * GIB, mig="on", profiles=(WIDE, ODD), slices=(HALF, ONE))
CPUS = (
    Slice("cpu0", "cpu", "", 0, "box", cores=(0, 1, 2)),
    Slice("cpu1", "cpu", "", 0, "box", cores=(4, 5)),
)
BOX = Box(CPUS, (WHOLE, CUT), "580", shared=tuple(list_shared({"turns": "3,6"}, frozenset(range(7)))))
ON_GPU, ON_PART = Seat(("GPU-0",)), Seat(("GPU-1",), Placed(4, 4, "3g.44gb"))


def test_cards_are_what_the_driver_says() -> None:
    """Its profiles and places, and of a cut GPU the instances that exist; shared cores are a card, too."""
    whole, cut, turns = list_cards(BOX)
    assert whole.table is None
    assert whole.possible == cut.table
    assert isinstance(cut.table, Table)
    assert [(each.name, each.size, each.starts, each.limit) for each in cut.table.profiles] == [
        ("1g.11gb", 1, (0, 1, 5), 6),
        ("3g.44gb", 4, (0, 4), 2),
    ]
    assert (cut.table.slots, cut.declared) == (8, (Placed(1, 1, "1g.11gb"), Placed(4, 4, "3g.44gb")))
    assert (turns.name, turns.cores, turns.is_gpu) == ("turns", (3, 6), False)


def test_models_doze_where_others_wait_for_memory() -> None:
    """On a GPU that is shared in time, and nobody who has to answer at once."""
    shared = Seat(("GPU-0",), memory_bytes=GIB, is_shared=True)
    assert may_doze(shared, "interactive")
    assert may_doze(shared, "batch")
    assert not may_doze(shared, "realtime")
    assert not may_doze(None, "batch")
    assert not may_doze(Seat(("GPU-0",)), "batch")
    assert not may_doze(Seat(("turns",), cores=(3,), is_shared=True), "batch")


def test_a_part_in_trouble_is_no_place_and_says_why() -> None:
    """A whole GPU in trouble is none either."""
    gpu = replace(CUT, slices=(replace(ONE, trouble=LOST), HALF))
    cards = list(list_cards(replace(BOX, gpus=(replace(WHOLE, trouble=LOST), gpu))))
    assert cards[0].trouble == LOST.what
    assert cards[1].declared == (Placed(4, 4, "3g.44gb"),)
    assert cards[1].broken == ((Placed(1, 1, "1g.11gb"), LOST.what),)


def test_cores_are_given_away_but_for_the_first_and_those_that_somebody_chose() -> None:
    """And it is said why not."""
    assert tuple(list_nodes(BOX, {"night": {2, 4}})) == (
        Node("cpu0", (1,), "core 0 is everybody's, 2 is in --cores of night"),
        Node("cpu1", (5,), "4 is in --cores of night"),
    )


@pytest.mark.parametrize(
    ("seat", "needs"),
    [
        (ON_GPU, Needs(FULL.nodes, FULL.env)),
        (replace(ON_GPU, memory_bytes=1, is_shared=True), Needs(FULL.nodes, FULL.env, turns_on="GPU-0")),
        (ON_PART, Needs(HALF.nodes, HALF.env)),
        (Seat(("cpu0", "cpu1"), cores=(1, 5)), Needs(cores=(1, 5))),
        (Seat(("turns",), cores=(3, 6), is_shared=True), Needs(cores=(3, 6), turns_on="turns")),
    ],
)
def test_a_seat_needs_what_its_device_has(seat: Seat, needs: Needs) -> None:
    """Files, variables, cores, and whose turns it takes."""
    assert needs_of(seat, BOX) == needs


@pytest.mark.parametrize(
    ("seat", "box", "says"),
    [
        (ON_GPU, replace(BOX, gpus=(CUT,)), "GPU-0 is not among the GPUs that are there"),
        (ON_GPU, Box(CPUS, trouble=LOST), "GPU-0: the GPU is lost"),
        (ON_GPU, replace(BOX, gpus=(replace(WHOLE, trouble=LOST),)), "GPU-0: the GPU is lost"),
        (Seat(("GPU-1",)), BOX, "GPU-1 is cut by MIG now"),
        (ON_PART, replace(BOX, gpus=(replace(CUT, slices=(ONE,)),)), "no MIG device with 3g.44gb in slots 4 to 7"),
        (ON_PART, replace(BOX, gpus=(replace(CUT, slices=(replace(HALF, trouble=LOST),)),)), "MIG-2: the GPU is lost"),
        (Seat(("cpu0",), cores=(2, 3)), BOX, "cpu0: the cores 3 are not there, or are shared"),
        (Seat(("other",), cores=(3,), is_shared=True), BOX, "no cores are shared as other"),
        (Seat(("turns",), cores=(3, 5), is_shared=True), BOX, "turns: the cores 5 are not there, or are shared"),
        (
            Seat(("turns",), cores=(3, 6), is_shared=True),
            replace(BOX, shared=tuple(list_shared({"turns": "3,6"}, frozenset(range(6))))),
            "turns: core 6 is offline",
        ),
    ],
)
def test_what_cannot_be_had_is_degraded_with_why(seat: Seat, box: Box, says: str) -> None:
    """Each with something to do."""
    with pytest.raises(BedsitError) as refused:
        needs_of(seat, box)
    assert (refused.value.code, isinstance(refused.value, NotYetSeen)) == ("device.degraded", False)
    assert says in refused.value.message
    assert refused.value.hint


def test_a_gpu_that_nobody_has_asked_yet_is_not_lost() -> None:
    """Until every GPU that there is was asked once; those that have answered can be used."""
    box = replace(BOX, gpus=(CUT,), is_counted=False)
    with pytest.raises(NotYetSeen):
        needs_of(ON_GPU, box)
    assert needs_of(ON_PART, box).env == HALF.env
