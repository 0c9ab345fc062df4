"""A slot that is born for a device: its nodes are there, no others are, and who looks from outside sees either."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import detect
from bedsit.sandbox.jail.root import DEVICES
from bedsit.sandbox.nodes import Node, find_nodes
from bedsit.sandbox.spawn import read_order
from tests_support.nodes import ALLOWED, MAJOR, OTHERS, OWN, make_node, make_nodes

pytestmark = pytest.mark.root

LIST = """
import os
result = sorted(os.path.join(folder, name)[5:] for folder, _, names in os.walk("/dev") for name in names)
"""
OPEN = "import os; result = attempt(lambda: os.open('/dev/{}', os.O_RDWR))"
ORDER = {
    "slot": "s1", "init_uid": 5, "worker_uid": 6, "run_dir": "/", "tmp_bytes": 1, "bundle_bytes": 1,
    "fds": ["listener", "build", "group"],
}  # fmt: skip


@pytest.fixture
def nodes(house: Any) -> Iterator[tuple[Node, ...]]:
    """The five of a MIG instance."""
    yield make_nodes(house.folder)
    shutil.rmtree(house.folder / "dev")


def test_it_has_its_nodes_and_the_harmless_ones(spawn: Any, shell_zygote: Any, nodes: Any) -> None:
    """Every wall is up, and nothing else is in its /dev."""
    slot = spawn(shell_zygote, nodes=nodes)
    assert {layer: state for layer, state in slot.walls().items() if state != "on"} == {}
    assert slot.run(LIST) == sorted([*DEVICES, *OWN])


def test_its_variables_are_there_before_any_tenant(spawn: Any, shell_zygote: Any, nodes: Any) -> None:
    """And beside the usual ones, which no device changes for others."""
    source = "import os; result = [os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['USER']]"
    slot = spawn(shell_zygote, nodes=nodes, env={"CUDA_VISIBLE_DEVICES": "MIG-1"})
    assert slot.run(source) == ["MIG-1", "worker"]
    assert spawn(shell_zygote).run(source) == [None, "worker"]


@pytest.mark.parametrize("name", OWN)
def test_each_of_its_nodes_is_let_through(spawn: Any, shell_zygote: Any, nodes: Any, name: str) -> None:
    """By mounts, landlock and the device program: there is no driver, and that is all."""
    assert spawn(shell_zygote, nodes=nodes).run(OPEN.format(name)) == ALLOWED


def test_a_node_too_many_is_seen(spawn: Any, shell_zygote: Any, nodes: Any) -> None:
    """Whatever was mounted that was not meant: the wall is off. The device program's own check knows no nodes."""
    slot = spawn(shell_zygote, nodes=nodes)
    few = tuple(node for node in nodes if node.name != "nvidia0")
    assert slot.walls(nodes=few)["devices"] == "off: device nodes work on /dev/nvidia0"


def test_a_node_too_few_is_seen(spawn: Any, shell_zygote: Any, nodes: Any) -> None:
    """A slot that lacks what it was meant to have is of no use to its tenant."""
    (first, *_), few = nodes, nodes[1:]
    assert spawn(shell_zygote, nodes=few).walls(nodes=nodes)["devices"] == f"off: /dev/{first.name} is not there"


def test_a_node_of_another_device_is_seen(spawn: Any, shell_zygote: Any, nodes: Any) -> None:
    """The right name over other numbers."""
    wrong = tuple(node._replace(minor=node.minor + 1) if node.name == "nvidia0" else node for node in nodes)
    off = spawn(shell_zygote, nodes=nodes).walls(nodes=wrong)["devices"]
    assert off == f"off: /dev/nvidia0 is not the device {MAJOR}:1"


def test_a_node_that_became_another_device_is_no_slot(house: Any, shell_zygote: Any, nodes: Any) -> None:
    """Between the daemon's look and the mount: the birth ends there, and leaves nothing."""
    path = Path(nodes[0].source)
    path.unlink()
    make_node(house.folder, nodes[0].name, minor=99)
    answer, slot, build, *_ = house.order(shell_zygote, nodes=nodes)
    os.close(build)
    assert (answer["ok"], answer["step"]) == (False, "devices")
    assert f"is not the device {MAJOR}:{nodes[0].minor} any more" in answer["message"]
    house.backend.remove(slot)


def test_a_node_that_vanished_is_no_slot(house: Any, shell_zygote: Any, nodes: Any) -> None:
    """The driver was unloaded meanwhile."""
    Path(nodes[0].source).unlink()
    answer, slot, build, *_ = house.order(shell_zygote, nodes=nodes)
    os.close(build)
    assert (answer["ok"], answer["step"], answer["errno"]) == (False, "devices", 2)
    house.backend.remove(slot)


@pytest.mark.parametrize("abi", range(5))
def test_an_older_kernel_asks_less(box: Any, abi: int) -> None:
    """Where landlock does not know of ioctl, or is not there, the nodes work all the same."""
    slot = box.spawn(box.start_zygote("--bad", f"landlock:{abi}"), nodes=make_nodes(box.folder))
    assert slot.walls()["devices"] == "on"
    assert slot.run(OPEN.format("nvidia0")) == ALLOWED


def test_a_later_daemon_lets_the_same_nodes_through(house: Any, spawn: Any, shell_zygote: Any, nodes: Any) -> None:
    """Its own program takes the earlier one's place; without the nodes the slot would lose its device."""
    slot = spawn(shell_zygote, nodes=nodes)
    later = detect("another name", house.backend.places())
    later.renew(slot.id, nodes)
    assert later.check_devices(slot.id) is None
    assert "another program" in str(house.backend.check_devices(slot.id))
    assert slot.run(OPEN.format("nvidia0")) == ALLOWED
    later.renew(slot.id)
    assert later.check_devices(slot.id) is None


def test_slots_without_a_device_share_one_program(house: Any, spawn: Any, shell_zygote: Any, nodes: Any) -> None:
    """A device's slot has a wider one of its own, and costs others nothing; removing it closes that."""
    slot, plain = spawn(shell_zygote, nodes=nodes), spawn(shell_zygote)
    life = house.backend._life
    assert [life._program(s.id) is life._devices for s in (slot, plain)] == [False, True]
    house.end(slot)
    assert life._wider == {}


@pytest.mark.parametrize("name", OTHERS.keys() - {"nvidia1", "nvidia-caps/nvidia-cap14"})
def test_what_no_slot_may_have_is_never_ordered(tmp_path: Path, name: str) -> None:
    """Whoever asks for it: the daemon does not order it, and the zygote does not take such an order."""
    with pytest.raises(BedsitError, match="no device node that a slot may have"):
        find_nodes([make_node(tmp_path, name, 0)])
    with pytest.raises(BedsitError, match=r"wire\.malformed"):
        read_order(ORDER | {"nodes": [[name, f"/dev/{name}", MAJOR, 0]]}, [3, 4, 5])


@pytest.mark.parametrize(
    "name", ["mem", "../nvidia0", "nvidia0/../../mem", "null", "nvidia", "shm/nvidia0", "", "nvidia0\n"]
)
def test_a_name_that_is_no_gpus_is_no_order(name: str) -> None:
    """There is no way out of the slot's /dev, and none to another kind of device."""
    with pytest.raises(BedsitError, match=r"device\.degraded"):
        find_nodes([f"/dev/{name}"])
    for nodes in ([[name, "/dev/null", 1, 3]], [["nvidia0", "/dev/nvidia0", 195, 0]] * 2, [["nvidia0"]], 7):
        with pytest.raises(BedsitError, match=r"wire\.malformed"):
            read_order(ORDER | {"nodes": nodes}, [3, 4, 5])


def test_a_node_that_is_not_there_says_so(tmp_path: Path) -> None:
    """With what to do about it; a plain file, a link and a node that is closed to a worker are none either."""
    made = Path(make_node(tmp_path, "nvidia0", 0))
    (tmp_path / "dev/nvidiactl").touch()
    (tmp_path / "dev/nvidia2").symlink_to(made)
    closed = make_node(tmp_path, "nvidia3", 3, mode=0o660)
    for source, why in (
        (f"{tmp_path}/dev/nvidia1", "No such file or directory"),
        (f"{tmp_path}/dev/nvidiactl", "is no character device"),
        (f"{tmp_path}/dev/nvidia2", "is no character device"),
        (closed, "closed to workers: mode 0660"),
    ):
        with pytest.raises(BedsitError, match=why) as caught:
            find_nodes([str(made), source])
        assert caught.value.code == "device.degraded"
    assert find_nodes([str(made)], root="/proc/self/root") == (Node("nvidia0", str(made), MAJOR, 0),)
