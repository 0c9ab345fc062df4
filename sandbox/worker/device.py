"""The device that a slot was born for: made ready while the slot is nobody's yet, so that no tenant waits for it."""

import os
import socket
from typing import Final

import torch

from bedsit.ipc.slot import Report, encode_report

_BORN_FOR: Final = "BEDSIT_DEVICE"


def wake_device(control: socket.socket) -> None:
    """Make a CUDA context, where the slot was born for a device and torch can, and say how that went.

    The daemon waits for the word. Half a second and half a gigabyte of the card (docs/gpu), before any tenant is known.
    """
    if _BORN_FOR not in os.environ:
        return
    try:
        if torch.backends.cuda.is_built():
            torch.cuda.init()
            torch.zeros(1, device="cuda")
            torch.cuda.synchronize()
    except Exception as e:  # noqa: BLE001 - whatever a driver says against it is told, and ends the slot
        text = f"device.degraded\nCUDA does not start: {e}".encode(errors="replace")
        control.send(encode_report(Report.FAILED, 0, text))
        return
    control.send(encode_report(Report.READY))
