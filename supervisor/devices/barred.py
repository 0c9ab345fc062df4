"""Devices that nobody new is put on, for what their driver does not know. Pure.

Another daemon hands them out, or a slot sits there that cannot be ended: a process that is in the kernel, as in a
driver that hangs, goes on having what it has, whatever it is sent. Whoever else is on such a device runs on.
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


def bar(box: Box, troubles: Mapping[str, Trouble]) -> Box:
    """The box with these devices in trouble: GPUs, parts of some, or cores."""
    return replace(
        box,
        gpus=tuple(_bar_gpu(gpu, troubles) for gpu in box.gpus),
        shared=tuple(_bar_part(part, troubles) for part in box.shared),
    )


def _bar_gpu(gpu: Gpu, troubles: Mapping[str, Trouble]) -> Gpu:
    trouble = gpu.trouble or troubles.get(gpu.uuid)
    parts = tuple(replace(part, trouble=part.trouble or trouble or troubles.get(part.id)) for part in gpu.slices)
    return replace(gpu, trouble=trouble, slices=parts)


def _bar_part(part: Slice, troubles: Mapping[str, Trouble]) -> Slice:
    return replace(part, trouble=part.trouble or troubles.get(part.id))
