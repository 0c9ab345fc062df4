"""Kill -9 after every step of a birth: of the zygote, of the daemon, of the slot itself. Nothing may be left of it."""

import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bedsit.sandbox.jail.steps import STEPS
from tests_support.marks import HALF_BUILT
from tests_support.slots import wait_until


class Stop(NamedTuple):
    """Where a birth stops: after *step*, in the process that is *role* then."""

    step: str
    role: str

    def __str__(self) -> str:
        return f"{self.step}-{self.role}"


def find_stops() -> list[Stop]:
    """Every step in every process that takes it; after the fork of the worker there are two."""
    roles = {step.name: step.roles for step in STEPS} | {"fork_worker": ("init", "worker")}
    return [Stop(step, role) for step, of in roles.items() for role in of]


STOPS = find_stops()
IN_A_SLOT = [stop for stop in STOPS if stop.role != "zygote"]


class Gate:
    """The test's side of the zygote program's gate."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(2))
        self.path = path
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 2)

    def wait(self) -> None:
        """Until somebody has stopped there."""
        wait_until(lambda: self._bytes[0], "the birth stops")

    def open(self) -> None:
        """Let it go on."""
        self._bytes[1] = 1

    def close(self) -> None:
        """Ready for the next one."""
        self._bytes[:] = bytes(2)


class Birth:
    """A slot that has stopped after a step, in a box of a test."""

    def __init__(self, house: Any, zygote: Any, gate: Gate, stop: Stop) -> None:
        self.house, self.zygote, self.gate = house, zygote, gate
        gate.close()
        sabotage = f"stop after {stop.step} as {stop.role}"
        self.slot, self._build, self.path, message = house.begin(zygote, sabotage=sabotage)
        self.uids = (message["init_uid"], message["worker_uid"])
        gate.wait()

    def find(self, number: int) -> int:
        """The slot's process that is *number* in its own pid namespace."""
        found = [pid for pid in self.house.backend.procs(self.slot) if read_pids(pid)[-1] == number]
        assert len(found) == 1, found
        return found[0]

    def end_daemon(self) -> None:
        """What the daemon's death does to a slot that was not committed: its pipe ends."""
        os.close(self._build)

    def check_nothing_is_left(self) -> None:
        """Nobody in the group or with the slot's ids; the groups can be removed, in every hierarchy."""
        wait_until(lambda: not self.house.backend.populated(self.slot), "the group is empty")
        wait_until(lambda: not find_owned(self.uids), "nobody has the slot's ids")
        wait_until(self._remove, "the groups are gone")
        assert self.slot not in self.house.backend.list()

    def _remove(self) -> bool:
        # An ended process holds its v1 groups until its parent has reaped it: init, when the zygote is dead.
        try:
            self.house.backend.remove(self.slot)
        except Exception:  # noqa: BLE001  asked again, with a deadline
            return False
        return True


def read_pids(pid: int) -> list[int]:
    """A process's numbers, from the box's namespace inwards."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid"))
    return [int(word) for word in line.split()[1:]]


def find_owned(uids: tuple[int, int]) -> list[int]:
    """Processes that run as one of *uids*."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid in uids:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def list_kept(pid: int) -> tuple[list[str], list[str]]:
    """What a process holds: descriptors by what they are (without inode numbers), and children."""
    folder = Path(f"/proc/{pid}/fd")
    descriptors = sorted(str(fd.readlink()).split(":")[0] for fd in folder.iterdir())
    return descriptors, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """Where births stop."""
    return Gate(tmp_path_factory.mktemp("gate") / "gate")


@pytest.fixture(scope="module")
def stopping(house: Any, gate: Gate) -> Any:
    """A zygote that outlives its tests and whose births stop at the gate."""
    return house.start_zygote("--sabotage", "--gate", str(gate.path))


@pytest.fixture
def mortal(house: Any, gate: Gate) -> Iterator[Any]:
    """The same, for one test."""
    zygote = house.start_zygote("--sabotage", "--gate", str(gate.path))
    yield zygote
    house.zygotes.remove(zygote)
    zygote.sock.close()
    zygote.path.unlink(missing_ok=True)


@HALF_BUILT(part="attack", outcome="nothing is left")
@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_the_zygote_is_killed(house: Any, mortal: Any, gate: Gate, stop: Stop) -> None:
    """A slot whose zygote is gone ends, at the latest with the pipe of the daemon that gave it up."""
    birth = Birth(house, mortal, gate, stop)
    mortal.process.send_signal(signal.SIGKILL)
    mortal.process.wait()
    gate.open()
    birth.end_daemon()
    birth.check_nothing_is_left()


@HALF_BUILT(part="attack", outcome="nothing is left")
@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_the_daemon_is_killed(house: Any, stopping: Any, gate: Gate, stop: Stop) -> None:
    """Init finds nobody who wants the slot, and ends it; the zygote holds nothing of it and goes on."""
    stopping.ask({"op": "hello"})
    before = list_kept(stopping.process.pid)
    birth = Birth(house, stopping, gate, stop)
    birth.end_daemon()
    gate.open()
    assert stopping.hear()["slot"] == birth.slot  # finished or not: init may have left before the worker was ready
    birth.check_nothing_is_left()
    stopping.ask({"op": "hello"})
    assert list_kept(stopping.process.pid) == before


@HALF_BUILT(part="attack", outcome="nothing is left")
@pytest.mark.parametrize("stop", IN_A_SLOT, ids=str)
def test_the_slot_is_killed(house: Any, stopping: Any, gate: Gate, stop: Stop) -> None:
    """Init or worker, whichever has stopped: the zygote answers that it failed when all of the slot is gone."""
    stopping.ask({"op": "hello"})
    before = list_kept(stopping.process.pid)
    birth = Birth(house, stopping, gate, stop)
    os.kill(birth.find(2 if stop.role == "worker" else 1), signal.SIGKILL)
    answer = stopping.hear()
    assert not answer["ok"], answer
    assert not house.backend.populated(birth.slot)
    birth.end_daemon()
    birth.check_nothing_is_left()
    stopping.ask({"op": "hello"})
    assert list_kept(stopping.process.pid) == before


def test_every_step_is_among_them() -> None:
    """A new step is killed too, without anybody having to remember it."""
    assert {stop.step for stop in STOPS} == {step.name for step in STEPS}
