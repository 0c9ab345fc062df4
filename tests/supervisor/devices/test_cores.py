"""Cores as slices, over folders that look like the kernel's."""

import os
from pathlib import Path

import pytest

from bedsit.sandbox.cgroup.cores import format_cores
from bedsit.supervisor.devices.cores import find_cpus, find_numa_node


def make_sys(root: Path, nodes: dict[int, str]) -> Path:
    """/sys with these NUMA nodes, each with 1 GiB."""
    folder = root / "devices/system/node"
    folder.mkdir(parents=True)
    (folder / "online").write_text(format_cores(frozenset(nodes)) + "\n")
    for node, cores in nodes.items():
        (folder / f"node{node}").mkdir()
        (folder / f"node{node}/cpulist").write_text(f"{cores}\n")
        (folder / f"node{node}/meminfo").write_text(
            f"Node {node} MemTotal:       1048576 kB\nNode {node} MemFree: 1 kB\n"
        )
    return root


@pytest.fixture
def usable() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def test_no_core_is_in_two_slices_or_cannot_be_used(usable: list[int]) -> None:
    """On this machine, whatever it is."""
    cpus = find_cpus()
    assert sorted(core for part in cpus for core in part.cores) == usable
    assert all(part.kind == "cpu" and part.memory_bytes > 0 and part.trust == "isolated" for part in cpus)


def test_each_node_is_a_slice(tmp_path: Path, usable: list[int]) -> None:
    """With its own memory; a node without cores is none, and nor is one whose cores are not ours."""
    first, *rest = usable
    others = ",".join(map(str, rest))
    nodes = {0: str(first), 1: others, 2: "", 3: "9000-9003"}
    cpus = find_cpus(make_sys(tmp_path, nodes))
    assert [(part.id, part.cores) for part in cpus] == [("cpu0", (first,)), *([("cpu1", tuple(rest))] if rest else [])]
    assert cpus[0].memory_bytes == 1 << 30
    assert cpus[0].name == "1 core of node 0"


def test_the_cpuset_counts(tmp_path: Path, usable: list[int]) -> None:
    """Cores that this process is kept from are not handed out."""
    if len(usable) == 1:
        pytest.skip("needs two cores")
    os.sched_setaffinity(0, usable[1:])
    try:
        (part,) = find_cpus(make_sys(tmp_path, {0: format_cores(frozenset(usable))}))
    finally:
        os.sched_setaffinity(0, usable)
    assert part.cores == tuple(usable[1:])


def test_a_kernel_without_numa_has_one_node(tmp_path: Path, usable: list[int]) -> None:
    """Then all memory is its memory."""
    (tmp_path / "meminfo").write_text("MemTotal:       2097152 kB\n")
    (part,) = find_cpus(tmp_path, tmp_path)
    assert (part.id, part.cores, part.memory_bytes) == ("cpu0", tuple(usable), 2 << 30)


@pytest.mark.parametrize(("text", "node"), [("1\n", 1), ("-1\n", None), ("?", None)])
def test_a_card_is_next_to_a_node(tmp_path: Path, text: str, node: int | None) -> None:
    """NVML writes its address with a longer domain than the kernel does, and in capitals."""
    folder = tmp_path / "bus/pci/devices/0000:c1:00.0"
    folder.mkdir(parents=True)
    (folder / "numa_node").write_text(text)
    assert find_numa_node("00000000:C1:00.0", tmp_path) == node
    assert find_numa_node("", tmp_path) is None
