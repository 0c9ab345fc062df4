"""Devices on which a slot sits that cannot be ended. Pure.

A process that sits in the kernel, as in a driver that hangs, goes on having what it has, whatever it is sent. Whoever
else is on its device runs on; nobody new is put beside it.
"""

from collections.abc import Mapping
from dataclasses import replace

from bedsit.supervisor.devices.model import Box, Gpu, Slice, Trouble


def explain_stuck(slot: str) -> Trouble:
    """What is wrong with the device that such a slot has."""
    return Trouble(
        f"slot {slot} was killed and does not end: it sits in the kernel",
        "see dmesg and /proc/PID/stack of its processes (bedsit ps); if it does not end, a reboot is needed",
    )


def block(box: Box, troubles: Mapping[str, Trouble]) -> Box:
    """The box with these devices in trouble: GPUs, parts of some, or cores."""
    return replace(
        box,
        gpus=tuple(_block_gpu(gpu, troubles) for gpu in box.gpus),
        shared=tuple(_block_part(part, troubles) for part in box.shared),
    )


def _block_gpu(gpu: Gpu, troubles: Mapping[str, Trouble]) -> Gpu:
    trouble = gpu.trouble or troubles.get(gpu.uuid)
    parts = tuple(replace(part, trouble=part.trouble or trouble or troubles.get(part.id)) for part in gpu.slices)
    return replace(gpu, trouble=trouble, slices=parts)


def _block_part(part: Slice, troubles: Mapping[str, Trouble]) -> Slice:
    return replace(part, trouble=part.trouble or troubles.get(part.id))
