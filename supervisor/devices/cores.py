"""Cores as slices: one for each NUMA node that has cores which this process may use.

Guarantees: what is given out can be used, i.e. it is online and in the cpuset of who asks (sched_getaffinity(2)).
Source: Documentation/ABI/stable/sysfs-devices-node of the kernel. One without NUMA has no such folder: all is node 0.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from bedsit.sandbox.cgroup.cores import read_cores
from bedsit.supervisor.devices.model import Slice

_SYS: Final = Path("/sys")
_PROC: Final = Path("/proc")
#: What cores have in common: whatever takes all of them down.
_DOMAIN: Final = "box"


def find_usable() -> frozenset[int]:
    """The cores that this process may use now."""
    return frozenset(os.sched_getaffinity(0))


def find_cpus(sys: Path = _SYS, proc: Path = _PROC, *, apart: Collection[int] = ()) -> tuple[Slice, ...]:
    """The slices of cores, by node, without those that are kept *apart*. Never empty; no core is in two of them."""
    usable = find_usable().difference(apart) or find_usable()
    found = tuple(_make(node, cores & usable, memory) for node, cores, memory in _read_nodes(sys) if cores & usable)
    return found or (_make(0, usable, _read_memory(proc / "meminfo")),)


def find_numa_node(pci: str, sys: Path = _SYS) -> int | None:
    """The node whose cores and memory are next to the card at *pci*, as NVML writes it (``00000000:01:00.0``).

    None where the machine does not tell (the kernel says -1). NVML itself tells it only where a card is a node.
    """
    domain, _, rest = pci.lower().partition(":")
    try:
        node = int((sys / "bus/pci/devices" / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _make(node: int, cores: frozenset[int], memory_bytes: int) -> Slice:
    return Slice(
        id=f"cpu{node}",
        kind="cpu",
        name=f"{len(cores)} core{'s' * (len(cores) > 1)} of node {node}",
        memory_bytes=memory_bytes,
        fault_domain=_DOMAIN,
        cores=tuple(sorted(cores)),
        numa_node=node,
    )


def _read_nodes(sys: Path) -> Iterator[tuple[int, frozenset[int], int]]:
    root = sys / "devices/system/node"
    try:
        online = read_cores(root / "online")
    except (OSError, ValueError):
        return
    for node in sorted(online):
        folder = root / f"node{node}"
        try:
            cores = read_cores(folder / "cpulist")  # only those online (drivers/base/node.c)
        except (OSError, ValueError):  # it has just gone
            continue
        yield node, cores, _read_memory(folder / "meminfo")


def _read_memory(file: Path) -> int:
    """MemTotal in bytes; 0 where the kernel does not tell."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        _, found, rest = line.partition("MemTotal:")
        if found:
            return int(rest.split()[0]) << 10
    return 0
