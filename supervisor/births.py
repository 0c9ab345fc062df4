"""What a slot is from its birth on, and what a device takes of it.

A filter of system calls can only be narrowed, and what is mounted and let through is fixed before a worker exists: so
profile and device are chosen when a slot is built, while it belongs to nobody yet.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from bedsit.ipc.errors import error
from bedsit.sandbox.jail.context import Profile
from bedsit.supervisor.needs import Needs

#: In the environment of a slot that was born for a device, beside what the device itself wants there: which one it is.
DEVICE_VARIABLE: Final = "BEDSIT_DEVICE"
#: And how many bytes of it torch may have for tensors, where that is not the device's business.
MEMORY_VARIABLE: Final = "BEDSIT_DEVICE_MEMORY"


@dataclass(frozen=True)
class Birth:
    """What a slot is born as. *device* names a GPU or a part of one; empty for a slot that has no more than cores.

    *memory_bytes*: how much it may have of a GPU that several take turns on, with its context; 0 where it is the
    device's size that holds it.
    """

    profile: Profile = "standard"
    device: str = ""
    memory_bytes: int = 0


#: What the pool holds.
ORDINARY: Final = Birth()


#: What the device of that id needs now. Raises BedsitError where it cannot be used.
NeedsOf = Callable[[str], Awaitable[Needs]]


async def know_no_device(device: str) -> Needs:
    """A box without devices. Raises ``device.not_found``."""
    raise error("device.not_found", f"this box has no device {device}", "see: bedsit device list")
