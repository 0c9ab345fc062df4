"""The device program on this box's own cgroup2: what it allows, what it refuses, and who notices when it is missing."""

import errno
import json
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.cgroup import CgroupBackend, Limits, detect, devices
from bedsit.sandbox.cgroup.devices import DeviceProgram, NoProgram, Rule
from bedsit.sandbox.cgroup.lifecycle import Lifecycle
from tests_support.slots import House

pytestmark = pytest.mark.root

SLOT = "s00000000"
#: "Local or experimental" in the kernel's list of majors: an open that is allowed finds no driver.
FAKE_MAJOR = 240
REFUSED, NO_DRIVER, DONE = errno.EPERM, errno.ENXIO, 0

#: Runs as root with every capability: what is refused here, the program refuses.
ATTEMPTS = """
import json, os, sys
group, work = sys.argv[1:3]
with open(group + "/cgroup.procs", "w") as procs:
    procs.write("0")
os.chdir(work)
answers = []
for kind, path, mode, number in json.loads(sys.argv[3]):
    try:
        if kind == "open":
            os.close(os.open(path, mode))
        else:
            os.mknod(path, mode, number)
        answers.append(0)
    except OSError as e:
        answers.append(e.errno)
print(json.dumps(answers))
"""

Make = Callable[..., CgroupBackend]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends with one slot each; they are removed at the end."""
    made: list[CgroupBackend] = []

    def make_backend(program: DeviceProgram | NoProgram | None = None) -> CgroupBackend:
        backend = detect(f"test-{secrets.token_hex(4)}", devices=program)
        backend.create(SLOT)
        made.append(backend)
        return backend

    yield make_backend
    for backend in made:
        backend.remove(SLOT)
        backend.remove_root()


def group_of(backend: CgroupBackend) -> Path:
    """The slot's group."""
    return Path(backend.places()["unified"]) / SLOT


def attempt(backend: CgroupBackend, work: Path, *attempts: tuple[str, str, int, int]) -> list[int]:
    """The errno of each attempt of a root process in the slot's group; 0 when it succeeds."""
    argv = [sys.executable, "-I", "-c", ATTEMPTS, str(group_of(backend)), str(work), json.dumps(attempts)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    answers: list[int] = json.loads(done.stdout)
    return answers


def opening(path: str, mode: int = os.O_RDONLY) -> tuple[str, str, int, int]:
    """An attempt to open *path*."""
    return "open", path, mode, 0


def making(path: str, major: int, minor: int, kind: int = stat.S_IFCHR) -> tuple[str, str, int, int]:
    """An attempt to make a node at *path*."""
    return "mknod", path, kind | 0o600, os.makedev(major, minor)


def test_only_the_five_harmless_nodes_work(make: Make, tmp_path: Path) -> None:
    """Even for root with every capability: the kernel's log, the terminal and a new disk node are refused."""
    answers = attempt(
        make(),
        tmp_path,
        opening("/dev/null", os.O_RDWR),
        opening("/dev/zero", os.O_RDWR),
        opening("/dev/full", os.O_RDWR),
        opening("/dev/random"),
        opening("/dev/urandom"),
        opening("/dev/kmsg"),
        opening("/dev/tty"),
        making("disk", 8, 0, stat.S_IFBLK),
        making("null", 1, 3),
    )

    assert answers == [DONE] * 5 + [REFUSED] * 4


def test_without_the_program_they_all_work(make: Make, tmp_path: Path) -> None:
    """The same process in a group that has none: what stopped it was the program."""
    backend = make(NoProgram("left out"))

    answers = attempt(backend, tmp_path, opening("/dev/kmsg"), making("disk", 8, 0, stat.S_IFBLK), making("null", 1, 3))

    assert answers == [DONE] * 3


def test_a_rule_allows_exactly_its_minor_and_its_access(make: Make, tmp_path: Path) -> None:
    """A tenant's own device and not its neighbour's: the same major, one number away."""
    for minor in (3, 4):
        os.mknod(tmp_path / f"node{minor}", stat.S_IFCHR | 0o600, os.makedev(FAKE_MAJOR, minor))
    backend = make(DeviceProgram([Rule("c", FAKE_MAJOR, 3, "r"), Rule("c", FAKE_MAJOR, 5, "m")]))

    answers = attempt(
        backend,
        tmp_path,
        opening("node3", os.O_RDONLY),
        opening("node3", os.O_RDWR),
        opening("node4", os.O_RDONLY),
        making("made3", FAKE_MAJOR, 3),
        making("made5", FAKE_MAJOR, 5),
        making("block5", FAKE_MAJOR, 5, stat.S_IFBLK),
    )

    assert answers == [NO_DRIVER, REFUSED, REFUSED, REFUSED, DONE, REFUSED]


def test_a_rule_without_a_minor_allows_them_all(make: Make, tmp_path: Path) -> None:
    """Of its own major and kind, and nothing else."""
    backend = make(DeviceProgram([Rule("c", FAKE_MAJOR, None, "rwm")]))

    answers = attempt(backend, tmp_path, making("a", FAKE_MAJOR, 0), making("b", FAKE_MAJOR, 99), making("c", 241, 0))

    assert answers == [DONE, DONE, REFUSED]


def test_it_is_there_before_anything_joins(make: Make) -> None:
    """Asked of the kernel: one program, ours, on a group that nobody has been in."""
    backend = make()

    assert len(devices.query(group_of(backend))) == 1
    assert backend.check_devices(SLOT) is None
    assert backend.procs(SLOT) == []


def test_a_later_daemon_puts_its_own_in_place_of_an_earlier_ones(make: Make, tmp_path: Path) -> None:
    """A stranger's program is seen; after `renew` there is one again, and its rules are those that hold."""
    first = make(DeviceProgram([Rule("c", FAKE_MAJOR, 3, "m")]))
    second = detect("another name", first.places())

    assert "another program" in str(second.check_devices(SLOT))
    second.renew(SLOT)
    assert (second.check_devices(SLOT), len(devices.query(group_of(first)))) == (None, 1)
    assert "another program" in str(first.check_devices(SLOT))
    assert attempt(second, tmp_path, making("a", FAKE_MAJOR, 3), opening("/dev/null")) == [REFUSED, DONE]


def test_a_group_below_cannot_bring_its_own(make: Make) -> None:
    """Whoever could make groups below a slot's could not loosen the rules there either."""
    below = group_of(make()) / "below"
    below.mkdir()
    try:
        with pytest.raises(BedsitError, match=r"cgroup\.refused.*below.*not permitted"):
            DeviceProgram([Rule("c", 1, None, "rwm")]).attach(below)
    finally:
        below.rmdir()


def test_what_the_verifier_says_is_in_the_error() -> None:
    """A program that the kernel cannot accept is refused with the verifier's own words: a jump behind its end."""
    with pytest.raises(BedsitError) as caught:
        devices.load(devices.assemble([])[:-8])

    assert caught.value.code == "cgroup.refused"
    assert "fall-through" in caught.value.message or "last insn" in caught.value.message
    assert caught.value.detail["errno"] == errno.EINVAL


def test_a_process_without_the_rights_has_one_wall_less(make: Make) -> None:
    """Where the kernel does not take the program, groups are made without it, and every check says why."""
    source = "from bedsit.sandbox.cgroup.devices import load_program; print(load_program().check(None))"
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", sys.executable, "-I", "-c", source]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "the kernel refused the device program: Operation not permitted"

    backend = make(NoProgram("the kernel refused the device program: why"))
    assert backend.check_devices(SLOT) == "the kernel refused the device program: why"


def test_what_was_refused_for_one_group_is_said_of_no_other(tmp_path: Path) -> None:
    """And of that one only until it has its program, or is gone."""

    class Refused(NoProgram):
        refused = True

        def attach(self, group: Path) -> None:
            if self.refused and group.name == "first":
                raise error("cgroup.refused", "not here")

    devices = Refused("none")
    life = Lifecycle(tmp_path, devices=devices)
    life.create("first")
    life.create("second")
    assert (life.check_devices("first"), life.check_devices("second")) == ("not here", "none")
    life.remove("first")
    assert life.check_devices("first") == "none"
    life.create("first")
    devices.refused = False
    life.renew("first")
    assert life.check_devices("first") == "none"


@pytest.fixture
def open_house() -> Iterator[Any]:
    """A house whose slots have no device program."""
    house = House(NoProgram("left out"))
    yield house
    house.close()


def test_a_slot_without_it_is_seen_and_a_node_in_it_works(box: Any, open_house: Any) -> None:
    """The layer is off from outside, and a node that should not be there reaches its driver; with it, it does not."""
    attack = "import os; result = attempt(lambda: os.close(os.open('/dev/tty', os.O_RDONLY)))"
    walled, open_slot = (house.spawn(house.start_zygote("--bad", "devices")) for house in (box, open_house))

    assert walled.walls()["device_program"] == "on"
    assert open_slot.walls()["device_program"] == "off: left out"
    assert walled.run(attack) == "Operation not permitted"
    assert open_slot.run(attack) == "No such device or address"  # the terminal's own driver: a slot has no terminal


def test_limits_and_devices_are_apart(make: Make) -> None:
    """The program says nothing about limits, and a group has both."""
    backend = make()
    limits = Limits(64 << 20, 20, 0.5)
    backend.set_limits(SLOT, limits)

    assert backend.verify(SLOT, limits, []) is None
    assert backend.check_devices(SLOT) is None
