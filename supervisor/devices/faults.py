"""What is wrong, and what to do, in words: NVML's error codes, and what the daemon sees of its helper.

Codes are those of nvmlReturn_t (NVML API reference, "Device Enums").
"""

from collections.abc import Mapping
from typing import Final

from bedsit.supervisor.devices.model import Trouble
from bedsit.supervisor.devices.reports import NOT_HELD, Refusal

#: nvmlReturn_t, as far as it needs other words than NVML's own.
_NO_BINDING: Final = -1
_INVALID_ARGUMENT: Final = 2
_NOT_SUPPORTED: Final = 3
_NO_PERMISSION: Final = 4
_NOT_FOUND: Final = 6
_DRIVER_NOT_LOADED: Final = 9
_LIBRARY_NOT_FOUND: Final = 12
_FUNCTION_NOT_FOUND: Final = 13
_GPU_IS_LOST: Final = 15
_RESET_REQUIRED: Final = 16
_MISMATCH: Final = 18
_IN_USE: Final = 19
_INSUFFICIENT_RESOURCES: Final = 23

#: Ends of the helper that a person has to mend; asking again soon does not help.
LASTING: Final = frozenset({_NO_BINDING, _LIBRARY_NOT_FOUND, _FUNCTION_NOT_FOUND})

RESET: Final = (
    "stop bedsitd, which holds the GPU open (tenants on it end by the reset); nvidia-smi -r -i UUID; start it"
)
_LOOK: Final = "see: dmesg | grep -i -e nvrm -e xid"

_BOX: Final[Mapping[int, Trouble]] = {
    _NO_BINDING: Trouble("the Python package nvidia-ml-py is missing: cores only", "pip install 'bedsit[server]'"),
    _NO_PERMISSION: Trouble(
        "NVML may not open the driver: cores only", "who may open /dev/nvidiactl? ls -l /dev/nvidia*"
    ),
    _DRIVER_NOT_LOADED: Trouble(
        "NVML is there, but no driver runs: cores only",
        "is there a GPU? modprobe nvidia, and see: dmesg | grep -i nvrm",
    ),
    _LIBRARY_NOT_FOUND: Trouble(
        "no NVML library (libnvidia-ml.so.1): cores only", "nothing to do without a GPU; with one, install its driver"
    ),
    _FUNCTION_NOT_FOUND: Trouble(
        "libnvidia-ml.so.1 lacks what every driver's has: cores only", "install the library that belongs to the driver"
    ),
    _MISMATCH: Trouble(
        "the driver that runs and its library are of different versions: cores only",
        "an upgrade left the old one running: reboot, or unload and load the nvidia modules",
    ),
}
_GPU: Final[Mapping[int, Trouble]] = {
    _GPU_IS_LOST: Trouble("the GPU is lost: it does not answer on the bus", f"{_LOOK}; then reboot, or reset it"),
    _RESET_REQUIRED: Trouble("the GPU has to be reset before it works again", RESET),
    _IN_USE: Trouble("the GPU is being changed by another program", "nothing: it is asked again"),
}
_PLAN: Final = "see: bedsit device partition plan"
_CUT: Final[Mapping[int, Trouble]] = {
    _NOT_SUPPORTED: Trouble("the GPU takes no instances now: MIG is off, or the driver is too old", _PLAN),
    _NO_PERMISSION: Trouble(
        "the helper may not cut GPUs",
        "it takes root and the right to read /dev/nvidia-caps/nvidia-cap1, which is made by: "
        "nvidia-modprobe -f /proc/driver/nvidia/capabilities/mig/config",
    ),
    _NOT_FOUND: Trouble("it is not there any more", _PLAN),
    _IN_USE: Trouble("somebody computes on it", "who? nvidia-smi; it is destroyed when they have left"),
    _INSUFFICIENT_RESOURCES: Trouble("the GPU has no room for it: something else was made there", _PLAN),
}
_MEMORY: Final[Mapping[int, Trouble]] = {
    NOT_HELD: Trouble("the driver does not hold the limit that it set", _LOOK),
    _INVALID_ARGUMENT: Trouble("the driver takes no such limit of memory", "is it more than the card has?"),
    _NOT_SUPPORTED: Trouble(
        "the driver limits no memory now", "it takes driver 615, cgroup2 at /sys/fs/cgroup, and MIG off"
    ),
    _NO_PERMISSION: Trouble("the helper may not limit memory", "it takes root"),
    _NOT_FOUND: Trouble("the GPU or the group is not there any more", "nothing: the next slot is another group"),
}


def explain_box(refusal: Refusal) -> Trouble:
    """Why there are no GPUs: NVML could not be opened."""
    other = Trouble(f"NVML does not work: {refusal.call}: {refusal.text} ({refusal.code}): cores only", _LOOK)
    return _BOX.get(refusal.code, other)


def explain_gpu(refusal: Refusal) -> Trouble:
    """Why one GPU cannot be used."""
    other = Trouble(f"the driver refuses: {refusal.call}: {refusal.text} ({refusal.code})", _LOOK)
    return _GPU.get(refusal.code, other)


def explain_cut(refusal: Refusal) -> Trouble:
    """Why an instance was not made or destroyed, and what is left of it."""
    trouble = _CUT.get(refusal.code) or explain_gpu(refusal)
    where = f"{trouble.what} ({refusal.call}: {refusal.text})"
    return Trouble(f"{where}; {refusal.left}" if refusal.left else where, trouble.mend)


def explain_memory(refusal: Refusal) -> Trouble:
    """Why memory of a group was not limited, or not looked at, and what is left of it."""
    trouble = _MEMORY.get(refusal.code) or explain_gpu(refusal)
    where = f"{trouble.what} ({refusal.call}: {refusal.text})"
    return Trouble(f"{where}; {refusal.left}" if refusal.left else where, trouble.mend)


def explain_hang(call: str, seconds: float) -> Trouble:
    """A call that did not come back."""
    return Trouble(f"the driver hangs: {call} did not return within {seconds:g} s", f"{_LOOK}; a reboot may be needed")


def explain_end(call: str, cause: str) -> Trouble:
    """The helper's end in the middle of a call."""
    return Trouble(f"the helper that asks NVML ended in {call}: {cause}", _LOOK)


def explain_start(error: OSError, *, is_unit: bool) -> Trouble:
    """No helper could be started."""
    if is_unit:
        what = f"bedsit-nvml.socket does not let the daemon in ({error.strerror}): cores only"
        return Trouble(what, "systemctl enable --now bedsit-nvml.socket (systemd/README.md)")
    return Trouble(f"the helper that asks NVML does not start ({error.strerror}): cores only", "see the daemon's log")


STUCK: Final = Trouble("the helper hangs in the driver and cannot be killed", f"{_LOOK}; a reboot is needed")
GONE: Final = Trouble("the driver does not list the GPU any more", f"{_LOOK}; was it taken out, or given to a VM?")
LEAVING: Final = Trouble("it is being destroyed", "see: bedsit device partition plan")
NO_CAPS: Final = Trouble(
    "the driver lists no capability nodes for this MIG device, so no worker could open it",
    "see /proc/driver/nvidia-caps/mig-minors; nvidia-modprobe -f CAPABILITY makes the nodes",
)
