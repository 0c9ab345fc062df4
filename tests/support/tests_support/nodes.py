"""Device nodes that stand in for a GPU's, in a folder of the test's own. No driver answers under their numbers.

"Local or experimental" in the kernel's list of majors: an open that is allowed finds no driver (ENXIO), and that is how
it is told from one that is forbidden (EPERM, EACCES).
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from bedsit.sandbox.jail.root import DEVICES
from bedsit.sandbox.nodes import Node, find_nodes

MAJOR = 240
ALLOWED = "No such device or address"
#: A MIG instance's five. Each has a minor of its own.
OWN = {
    "nvidiactl": 255,
    "nvidia-uvm": 100,
    "nvidia0": 0,
    "nvidia-caps/nvidia-cap12": 12,
    "nvidia-caps/nvidia-cap13": 13,
}
#: What must never be in a slot with those: a neighbour's, and what is nobody's.
OTHERS = {
    "nvidia1": 1,
    "nvidia-caps/nvidia-cap14": 14,
    "nvidia-caps/nvidia-cap1": 31,
    "nvidia-caps/nvidia-cap2": 32,
    "nvidia-uvm-tools": 101,
    "nvidia-modeset": 254,
    "nvidia-nvswitchctl": 253,
}


def make_node(folder: Path, name: str, minor: int, major: int = MAJOR, mode: int = 0o666) -> str:
    """A node as the driver makes it, open to everybody. Gives its path."""
    path = folder / "dev" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in (path.parent, folder / "dev"):
        parent.chmod(0o755)
    os.mknod(path, stat.S_IFCHR | mode, os.makedev(major, minor))
    path.chmod(mode)
    return str(path)


def make_dev(folder: Path, names: Iterable[str], caps: Iterable[int]) -> None:
    """A whole /dev: what everybody needs, and a driver's nodes, by names and numbers of capabilities."""
    dev = folder / "dev"
    for path in ("shm", "pts"):
        (dev / path).mkdir(parents=True)
        (dev / path).chmod(0o1777)
    for name in DEVICES:
        number = os.stat(f"/dev/{name}").st_rdev
        make_node(folder, name, os.minor(number), os.major(number))
    for minor, name in enumerate(names):
        make_node(folder, name, minor)
    for cap in sorted(set(caps) - {1, 2}):
        make_node(folder, f"nvidia-caps/nvidia-cap{cap}", 1000 + cap)


def make_nodes(folder: Path, names: Iterable[str] = OWN) -> tuple[Node, ...]:
    """Some of OWN, as nodes that a slot may be born with."""
    return find_nodes(make_node(folder, name, OWN[name]) for name in names)
