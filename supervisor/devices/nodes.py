"""Which device files a slice of a GPU needs, and no others.

A whole GPU needs three (measured: docs/gpu, check "nodes"). A MIG instance needs two more, its capability nodes, whose
numbers the driver lists in /proc/driver/nvidia-caps/mig-minors (MIG User Guide, "Device Nodes and Capabilities").
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

_SHARED: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm")
_MINORS: Final = "driver/nvidia-caps/mig-minors"


def name_nodes(minor: int) -> tuple[str, ...]:
    """What a process needs of a whole GPU."""
    return (*_SHARED, f"/dev/nvidia{minor}")


def name_cap_nodes(
    minors: Mapping[str, int], gpu: int, gpu_instance: int, compute_instance: int
) -> tuple[str, ...] | None:
    """The two of a MIG instance of the GPU with minor *gpu*; None when the driver lists none for it."""
    instance = f"gpu{gpu}/gi{gpu_instance}"
    access, compute = minors.get(f"{instance}/access"), minors.get(f"{instance}/ci{compute_instance}/access")
    if access is None or compute is None:
        return None
    return (f"/dev/nvidia-caps/nvidia-cap{access}", f"/dev/nvidia-caps/nvidia-cap{compute}")


def read_cap_minors(proc: Path = Path("/proc")) -> dict[str, int]:
    """``{"gpu0/gi1/access": 12, ...}``; empty where the driver has no such file."""
    try:
        lines = (proc / _MINORS).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}  # noqa: PLR2004 - a pair
