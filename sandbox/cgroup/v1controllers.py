"""cgroupspy's v1 controllers, and the files that it lacks or misspells."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cgroupspy import controllers, interfaces

from bedsit.sandbox.cgroup.backend import naming


class Group:
    """One group in one hierarchy: all that a cgroupspy controller wants to know of its node."""

    def __init__(self, path: Path) -> None:
        self.full_path = os.fsencode(path)


class PidsController(controllers.Controller):  # type: ignore[misc]  # cgroupspy has no types
    """The pids controller, which cgroupspy lacks."""

    max = interfaces.BaseFileInterface("pids.max")
    current = interfaces.IntegerFile("pids.current", readonly=True)
    events = interfaces.DictFile("pids.events", readonly=True)


class CpuController(controllers.Controller):  # type: ignore[misc]
    """The cpu controller with cpu.idle (kernel 5.15)."""

    cfs_period_us = interfaces.IntegerFile("cpu.cfs_period_us")
    cfs_quota_us = interfaces.IntegerFile("cpu.cfs_quota_us")
    shares = interfaces.IntegerFile("cpu.shares")
    idle = interfaces.IntegerFile("cpu.idle")


class CpusetController(controllers.Controller):  # type: ignore[misc]
    """The cpuset controller, as the text that the kernel shows."""

    cpus = interfaces.BaseFileInterface("cpuset.cpus")
    mems = interfaces.BaseFileInterface("cpuset.mems")


class BlkioController(controllers.Controller):  # type: ignore[misc]
    """Bandwidth of disks, a line each. cgroupspy has a space in one of these names, and writes all lines at once."""

    read_bps = interfaces.BaseFileInterface("blkio.throttle.read_bps_device")
    write_bps = interfaces.BaseFileInterface("blkio.throttle.write_bps_device")


_CLASSES: Final[Mapping[str, Any]] = {
    "memory": controllers.MemoryController,
    "pids": PidsController,
    "cpu": CpuController,
    "cpuset": CpusetController,
    "blkio": BlkioController,
}


def open_controller(name: str, group: Path) -> Any:
    """The controller *name* of one group."""
    return _CLASSES[name](Group(group))


def get_value(name: str, group: Path, attribute: str) -> Any:
    """What a control file says; None when there is no such file."""
    return getattr(open_controller(name, group), attribute)


def set_value(name: str, group: Path, attribute: str, value: object) -> None:
    """Write a control file. Raises ``cgroup.refused`` with the file, the value and the kernel's answer."""
    controller = open_controller(name, group)
    file = os.fsdecode(controller.get_interface(attribute).filename)
    with naming(group / file, str(value)):
        setattr(controller, attribute, value)
