"""What a slot takes that is born for a slice, or why none can be now."""

from typing import Final

from bedsit.ipc.errors import error
from bedsit.supervisor.births import Needs
from bedsit.supervisor.devices.model import Box
from bedsit.supervisor.devices.watch import Devices

#: A daemon that has just come knows of no GPU yet; their driver may have to wake them.
_LOOK_S: Final = 60.0


async def await_needs(devices: Devices, device: str) -> Needs:
    """As `needs_of`, once somebody has looked at all."""
    await devices.wait_looked(_LOOK_S)
    return needs_of(devices.box, device)


def needs_of(box: Box, device: str) -> Needs:
    """The nodes and variables of the slice of a GPU that has this id.

    Raises ``device.not_found``, and ``device.unusable`` with the trouble that it or its GPU is in.
    """
    for gpu in box.gpus:
        for each in gpu.slices:
            if each.id == device:
                trouble = each.trouble or gpu.trouble
                if trouble is not None:
                    raise error("device.unusable", f"device {device}: {trouble.what}", trouble.mend)
                return Needs(each.nodes, each.env)
    raise error("device.not_found", f"this box has no GPU or MIG device {device}", "see: bedsit device list")
