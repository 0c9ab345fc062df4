"""What a slot takes that is born for a device, out of the inventory."""

from dataclasses import replace

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.nodes import find_nodes
from bedsit.supervisor.devices.model import Box, Gpu, Placement, Profile, Slice, Trouble
from bedsit.supervisor.devices.nodes import name_cap_nodes, name_nodes
from bedsit.supervisor.needs import Needs, needs_of_device
from bedsit.supervisor.placement.geometry import Placed
from bedsit.supervisor.placement.seating import Seat

CAPS = name_cap_nodes({"gpu999/gi1/access": 9912, "gpu999/gi1/ci0/access": 9913}, 999, 1, 0) or ()
EIGHTH = Profile(19, "MIG 1g.10gb", 1, 10 << 30, 16, 7, tuple(Placement(start, 1) for start in range(7)))
WHOLE = Slice(
    "GPU-1", "exclusive", "H100", 80 << 30, "GPU-1", nodes=name_nodes(998), env={"CUDA_VISIBLE_DEVICES": "GPU-1"}
)
PART = Slice(
    "MIG-1", "mig", "1g.10gb", 10 << 30, "MIG-1", "GPU-2", profile=19, placement=Placement(3, 1),
    nodes=(*name_nodes(999), *CAPS), env={"CUDA_VISIBLE_DEVICES": "MIG-1"},
)  # fmt: skip
CUT = Gpu("GPU-2", 1, mig="on", profiles=(EIGHTH,), slices=(PART,))
BOX = Box((), (Gpu("GPU-1", 0, slices=(WHOLE,)), CUT))
ON_WHOLE, ON_PART = Seat(("GPU-1",)).device, Seat(("GPU-2",), placed=Placed(3, 1, "1g.10gb")).device


def test_a_device_has_its_nodes_and_variables() -> None:
    """A whole GPU's three, a MIG instance's five; the instance goes by its place, its variable by what it is now."""
    assert needs_of_device(ON_WHOLE, BOX) == Needs(WHOLE.nodes, {"CUDA_VISIBLE_DEVICES": "GPU-1"})
    assert needs_of_device(ON_PART, BOX) == Needs(PART.nodes, {"CUDA_VISIBLE_DEVICES": "MIG-1"})
    assert len(PART.nodes) == 5


def test_a_seat_on_cores_is_no_device_to_be_born_for() -> None:
    """Its slots are ordinary ones."""
    assert Seat(("cpu0",), cores=(1, 2)).device == ""


@pytest.mark.parametrize("source", [*WHOLE.nodes, *PART.nodes])
def test_what_the_inventory_names_a_slot_may_have(source: str) -> None:
    """The list of names at the walls is that of the inventory: such a node may be missing here, but is not refused."""
    try:
        find_nodes([source])
    except BedsitError as e:
        assert "No such file" in e.message


@pytest.mark.parametrize("device", ["GPU-3", "GPU-2", ON_PART.replace("3", "4", 1), "cpu0", ""])
def test_what_is_no_device_of_this_box_is_refused(device: str) -> None:
    """Gone, cut by now, or another part of it; cores take no nodes."""
    with pytest.raises(BedsitError) as caught:
        needs_of_device(device, BOX)
    assert caught.value.code == "device.degraded"


def test_a_device_in_trouble_is_refused_with_what_to_do() -> None:
    """Its own trouble, or its GPU's."""
    lost, torn = Trouble("fell off the bus", "restart the box"), Trouble("no capability nodes", "nvidia-modprobe")
    for gpu, device, trouble in (
        (replace(BOX.gpus[0], trouble=lost), ON_WHOLE, lost),
        (replace(CUT, slices=(replace(PART, trouble=torn),)), ON_PART, torn),
    ):
        with pytest.raises(BedsitError) as caught:
            needs_of_device(device, Box(gpus=(gpu,)))
        assert (caught.value.code, caught.value.hint) == ("device.degraded", trouble.mend)
        assert trouble.what in caught.value.message
