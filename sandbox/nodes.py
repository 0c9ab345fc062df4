"""Device nodes that a slot may be born with, besides the harmless five: which there may be, and what they are now.

A slot gets the box's own nodes, by bind mounts; nobody makes one. So a node is four plain values: its name below the
slot's /dev, where it lies on the box, and its two numbers. The numbers are what the kernel goes by: the device program
lets these through and no others, and the jail mounts a node only while it still has them.
"""

import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from bedsit.ipc.errors import error

#: What a GPU or a MIG instance takes (docs/gpu). Not among them: nvidia-uvm-tools, nvidia-modeset, nvidia-nvswitchctl,
#: and the capabilities to cut GPUs (1) and to watch everybody on them (2).
_KNOWN: Final = re.compile(r"nvidiactl|nvidia-uvm|nvidia\d{1,4}|nvidia-caps/nvidia-cap([3-9]|[1-9]\d{1,4})")
MOST: Final = 16
_FOR_ALL: Final = stat.S_IROTH


class Node(NamedTuple):
    """A character device: *name* below the slot's /dev, *source* on the box, and its numbers."""

    name: str
    source: str
    major: int
    minor: int

    def is_still(self, found: os.stat_result) -> bool:
        """Whether what was *found* is this device."""
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(self.major, self.minor)


def find_nodes(sources: Iterable[str], root: str = "") -> tuple[Node, ...]:
    """The nodes at these paths, as whoever has *root* for its root sees them. Opens none.

    Raises ``device.degraded`` where one is missing, is none, or is closed to a worker, which is nobody on the box.
    """
    return tuple(_find(source, root) for source in sources)


def _find(source: str, root: str) -> Node:
    name = source.rpartition("/dev/")[2]
    if not _KNOWN.fullmatch(name):
        raise error("device.degraded", f"{source} is no device node that a slot may have")
    try:
        found = os.stat(root + source, follow_symlinks=False)
    except OSError as e:
        hint = "load the driver and its nodes: nvidia-modprobe -u -c0; see bedsit device list"
        raise error("device.degraded", f"{source}: {e.strerror}", hint) from None
    if not stat.S_ISCHR(found.st_mode):
        raise error("device.degraded", f"{source} is no character device")
    if not found.st_mode & _FOR_ALL:
        hint = "the driver's option NVreg_DeviceFileMode=0666 opens it; its numbers keep other slots out"
        raise error("device.degraded", f"{source} is closed to workers: mode {stat.S_IMODE(found.st_mode):04o}", hint)
    return Node(name, source, os.major(found.st_rdev), os.minor(found.st_rdev))


def read_nodes(message: Mapping[str, Any]) -> tuple[Node, ...]:
    """The nodes in an order. Raises ValueError or TypeError: a name that is not known is a broken order."""
    nodes = tuple(Node(str(n), str(s), int(major), int(minor)) for n, s, major, minor in message.get("nodes", ()))
    names = {node.name for node in nodes}
    if len(nodes) > MOST or len(names) != len(nodes) or not all(map(_KNOWN.fullmatch, names)):
        raise ValueError(f"nodes that a slot may have, not {sorted(names)}")
    return nodes
