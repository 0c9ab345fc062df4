"""The device that a slot was born for: made ready while the slot is nobody's yet, so that no tenant waits for it."""

import os
import socket
from typing import Final

import torch

from bedsit.ipc.slot import Report, encode_report

_BORN_FOR: Final = "BEDSIT_DEVICE"
_MEMORY: Final = "BEDSIT_DEVICE_MEMORY"


def wake_device(control: socket.socket) -> None:
    """Make a CUDA context, where the slot was born for a device and torch can, and say how that went.

    The daemon waits for the word. Half a second and half a gigabyte of the card (docs/gpu), before any tenant is known.
    A torch that does not keep to the memory that it was given is of use all the same: the word says so.
    """
    if _BORN_FOR not in os.environ:
        return
    note = ""
    try:
        if torch.backends.cuda.is_built():
            torch.cuda.init()
            note = keep_to_memory()
            torch.zeros(1, device="cuda")
            torch.cuda.synchronize()
    except Exception as e:  # noqa: BLE001 - whatever a driver says against it is told, and ends the slot
        text = f"device.degraded\nCUDA does not start: {e}".encode(errors="replace")
        control.send(encode_report(Report.FAILED, 0, text))
        return
    control.send(encode_report(Report.READY, 0, note.encode(errors="replace")))


def find_device() -> torch.device:
    """What models of this slot compute on: its GPU where a context was made on one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_initialized() else "cpu")


def keep_to_memory() -> str:
    """Let torch refuse what is more than this slot may have of the device. Says why it does not, if so.

    Hygiene and no wall: a library that asks the driver itself is not asked (docs/gpu, T9).
    """
    if _MEMORY not in os.environ:
        return ""
    try:
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, int(os.environ[_MEMORY]) / total))
    except Exception as e:  # noqa: BLE001 - whatever it is, the slot is watched from outside
        return f"torch does not limit itself: {e}"
    return ""
