"""What a slot takes that is born for a slice, out of the inventory."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.nodes import find_nodes
from bedsit.supervisor.births import Needs
from bedsit.supervisor.devices.model import Box, Gpu, Slice, Trouble
from bedsit.supervisor.devices.needs import await_needs, needs_of
from bedsit.supervisor.devices.nodes import name_cap_nodes, name_nodes
from bedsit.supervisor.devices.watch import Devices
from tests_support.nvml.library import FakeGpu, FakeNvml

CAPS = name_cap_nodes({"gpu999/gi1/access": 9912, "gpu999/gi1/ci0/access": 9913}, 999, 1, 0) or ()
WHOLE = Slice(
    "GPU-1", "exclusive", "H100", 80 << 30, "GPU-1", nodes=name_nodes(998), env={"CUDA_VISIBLE_DEVICES": "GPU-1"}
)
PART = Slice("MIG-1", "mig", "1g.10gb", 10 << 30, "MIG-1", nodes=(*name_nodes(999), *CAPS))
CORES = Slice("cpu0", "cpu", "cores", 0, "cpu0", cores=(0, 1))
BOX = Box((CORES,), (Gpu("GPU-1", 0, slices=(WHOLE,)), Gpu("GPU-2", 1, slices=(PART,))))


def test_a_slice_has_its_nodes_and_variables() -> None:
    """A whole GPU's three, a MIG instance's five."""
    assert needs_of(BOX, "GPU-1") == Needs(WHOLE.nodes, {"CUDA_VISIBLE_DEVICES": "GPU-1"})
    assert len(needs_of(BOX, "MIG-1").nodes) == 5


@pytest.mark.parametrize("source", [*WHOLE.nodes, *PART.nodes])
def test_what_the_inventory_names_a_slot_may_have(source: str) -> None:
    """The list of names at the walls is that of the inventory: such a node is missing here, and not refused."""
    if not source.startswith(("/dev/nvidiactl", "/dev/nvidia-uvm")):
        with pytest.raises(BedsitError, match="No such file"):
            find_nodes([source])
    else:  # which a box with a driver has
        try:
            find_nodes([source])
        except BedsitError as e:
            assert "No such file" in e.message


@pytest.mark.parametrize("device", ["GPU-3", "cpu0", ""])
def test_what_is_no_gpu_of_this_box_is_not_found(device: str) -> None:
    """One that was cut anew has another name; cores take no nodes."""
    with pytest.raises(BedsitError) as caught:
        needs_of(BOX, device)
    assert caught.value.code == "device.not_found"


def test_a_device_in_trouble_is_refused_with_what_to_do() -> None:
    """Its own trouble, or its GPU's."""
    lost, torn = Trouble("fell off the bus", "restart the box"), Trouble("no capability nodes", "nvidia-modprobe")
    gpu = replace(BOX.gpus[0], trouble=lost)
    for box, device, trouble in (
        (Box(gpus=(gpu,)), "GPU-1", lost),
        (Box(gpus=(Gpu("GPU-2", 1, slices=(replace(PART, trouble=torn),)),)), "MIG-1", torn),
    ):
        with pytest.raises(BedsitError) as caught:
            needs_of(box, device)
        found = caught.value
        assert (found.code, found.message, found.hint) == (
            "device.unusable",
            f"device {device}: {trouble.what}",
            trouble.mend,
        )


def test_who_asks_before_anybody_looked_waits(nvml: FakeNvml) -> None:
    """A daemon that has just come builds slots for devices it does not know of yet: by a real helper's first look."""
    nvml.gpus = [FakeGpu(0)]
    nvml.write()

    async def ask() -> Needs:
        devices = Devices(lambda _: None)
        looking = asyncio.ensure_future(devices.run())
        try:
            return await await_needs(devices, nvml.gpus[0].uuid)
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
            await devices.close()

    needs = asyncio.run(ask())
    assert needs == Needs(name_nodes(0), {"CUDA_VISIBLE_DEVICES": nvml.gpus[0].uuid})
