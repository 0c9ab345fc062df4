"""Limits that the kernel really holds, on this box's own cgroups, of whichever version."""

import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import CgroupBackend, Limits, detect
from bedsit.sandbox.cgroup.backend import check_limits
from bedsit.sandbox.cgroup.cores import format_cores, parse_cores
from bedsit.sandbox.cgroup.disks import list_disks
from bedsit.sandbox.cgroup.v1 import inherit_cores
from bedsit.sandbox.cgroup.v1limits import V1Limits
from bedsit.sandbox.cgroup.v2 import has_controllers
from bedsit.sandbox.cgroup.v2limits import V2Limits

SLOT = "s00000000"
LIMITS = Limits(memory_bytes=64 << 20, pids_max=20, cpus=0.2)


@pytest.fixture
def backend() -> Iterator[CgroupBackend]:
    """A backend with one slot; at the end all that is in it is killed."""
    made = detect(f"test-{os.getpid()}")
    made.create(SLOT)
    yield made
    for slot in made.list():
        end(made, slot)
        made.remove(slot)
    made.remove_root()


def end(backend: CgroupBackend, slot: str) -> None:
    """Kill, and wait for the kernel to say "empty"."""
    fd = backend.populated_fd(slot)
    backend.kill(slot)
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    deadline = time.monotonic() + 20
    while backend.populated(slot):
        assert time.monotonic() < deadline
        poll.poll(1000)
    os.close(fd)


class Child:
    """A Python program in the slot's groups; it has joined them when this is made."""

    def __init__(self, backend: CgroupBackend, source: str, slot: str = SLOT) -> None:
        group = backend.open_group_fd(slot)
        fds = [*backend.open_join_fds(slot), os.open("cgroup.procs", os.O_WRONLY, dir_fd=group)]
        os.close(group)
        join = f"import os, signal, time\nfor fd in {fds}: os.write(fd, b'0')\nos.write(1, b'in')\n"
        argv = [sys.executable, "-I", "-c", join + source]
        self.process = subprocess.Popen(argv, pass_fds=fds, stdout=subprocess.PIPE)
        self.pid = self.process.pid
        for fd in fds:
            os.close(fd)
        assert self.read(2) == b"in"

    def read(self, count: int) -> bytes:
        """What the program wrote to descriptor 1; blocks."""
        assert self.process.stdout is not None
        return os.read(self.process.stdout.fileno(), count)

    def wait(self) -> int:
        """Its exit code, or minus the signal."""
        with self.process:
            return self.process.wait(30)


HOG = "eaten = []\nwhile True: eaten.append(bytearray(b'x' * (1 << 20)))"
PAUSE = "signal.pause()"


def test_a_name_that_is_taken_stays_with_who_has_it(backend: CgroupBackend) -> None:
    """A second create is refused and takes nothing away: the group can still be limited, joined and read."""
    with pytest.raises(BedsitError, match="File exists"):
        backend.create(SLOT)
    backend.set_limits(SLOT, LIMITS)
    child = Child(backend, PAUSE)
    assert backend.verify(SLOT, LIMITS, [child.pid]) is None
    backend.kill(SLOT)
    assert child.wait() == -signal.SIGKILL


def test_memory_ends_at_the_limit_and_counts_as_oom(backend: CgroupBackend) -> None:
    """The kernel kills, and the counter says why."""
    backend.set_limits(SLOT, LIMITS)
    assert Child(backend, HOG).wait() == -signal.SIGKILL
    assert backend.oom_kills(SLOT) >= 1
    assert backend.stats(SLOT).memory_peak_bytes <= LIMITS.memory_bytes


def test_a_plain_kill_is_not_an_oom(backend: CgroupBackend) -> None:
    """Signal 9 alone proves nothing: the counter does."""
    backend.set_limits(SLOT, LIMITS)
    assert Child(backend, "os.kill(os.getpid(), signal.SIGKILL)").wait() == -signal.SIGKILL
    assert backend.oom_kills(SLOT) == 0


def test_memory_below_the_limit_is_fine(backend: CgroupBackend) -> None:
    """The harmless twin."""
    backend.set_limits(SLOT, LIMITS)
    assert Child(backend, "bytearray(b'x' * (16 << 20))").wait() == 0
    assert backend.oom_kills(SLOT) == 0


def test_without_a_limit_the_hog_goes_on(backend: CgroupBackend) -> None:
    """The same hog passes 64 MiB where nothing stops it: the wall is the limit, not the program."""
    backend.set_limits(SLOT, Limits(256 << 20, 20, 1.0))
    assert Child(backend, HOG).wait() == -signal.SIGKILL
    assert backend.stats(SLOT).memory_peak_bytes > 200 << 20


def test_processes_end_at_the_limit(backend: CgroupBackend) -> None:
    """A fork bomb gets EAGAIN, and the denials are counted."""
    backend.set_limits(SLOT, LIMITS)
    bomb = """
count = 0
while True:
    try:
        if os.fork() == 0:
            signal.pause()
        count += 1
    except BlockingIOError:
        os.write(1, bytes([count]))
        signal.pause()
"""
    child = Child(backend, bomb)
    assert child.read(1) == bytes([19])
    assert backend.pids_denied(SLOT) >= 1
    assert backend.stats(SLOT).pids == 20
    assert len(backend.procs(SLOT)) == 20
    end(backend, SLOT)
    assert child.wait() == -signal.SIGKILL


def test_processor_time_is_held_to_the_quota(backend: CgroupBackend) -> None:
    """A fifth of a processor: two seconds of trying yield less than 0.6."""
    backend.set_limits(SLOT, LIMITS)

    Child(backend, "end = time.monotonic() + 2\nwhile time.monotonic() < end: pass").wait()
    stats = backend.stats(SLOT)
    assert 0.2 < stats.cpu_usage_s < 0.6
    assert stats.throttled_s > 0


def test_limits_change_while_it_runs(backend: CgroupBackend) -> None:
    """Up and down, in one call each, whatever the order in which the kernel wants them."""
    backend.set_limits(SLOT, LIMITS)
    child = Child(backend, PAUSE)
    for size in (256 << 20, 32 << 20, 128 << 20):
        limits = Limits(size, 50, 1.5)
        backend.set_limits(SLOT, limits)
        assert backend.verify(SLOT, limits, []) is None
    assert "not" in str(backend.verify(SLOT, LIMITS, []))
    end(backend, SLOT)
    child.wait()


def test_a_refused_limit_names_itself_and_changes_nothing(backend: CgroupBackend) -> None:
    """Less memory than is in use cannot be had: the old limits stay, all of them."""
    before = Limits(256 << 20, 20, 1.0)
    backend.set_limits(SLOT, before)
    child = Child(backend, "memory = bytearray(b'x' * (64 << 20))\nos.write(1, b'!')\nsignal.pause()")
    assert child.read(1) == b"!"
    with pytest.raises(BedsitError) as caught:
        backend.set_limits(SLOT, Limits(8 << 20, 30, 0.5))
    assert caught.value.code == "cgroup.refused"
    assert caught.value.detail["value"] == str(8 << 20)
    assert Path(caught.value.detail["file"]).exists()
    assert caught.value.detail["errno"] in (16, 12)
    assert backend.verify(SLOT, before, [child.pid]) is None
    end(backend, SLOT)
    child.wait()


def test_frozen_processes_stand_still_and_can_be_killed(backend: CgroupBackend) -> None:
    """Freeze, see no progress in processor time, kill without thawing."""
    backend.set_limits(SLOT, Limits(64 << 20, 20, 1.0))

    child = Child(backend, "while True: pass")
    backend.freeze(SLOT, True)
    events = Path(backend.places()["unified"]) / SLOT / "cgroup.events"
    deadline = time.monotonic() + 10
    while "frozen 1" not in events.read_text():
        assert time.monotonic() < deadline
    used = backend.stats(SLOT).cpu_usage_s
    select.select([], [], [], 0.3)
    assert backend.stats(SLOT).cpu_usage_s - used < 0.05
    backend.freeze(SLOT, False)
    while backend.stats(SLOT).cpu_usage_s - used < 0.1:  # the twin: thawed, it goes on
        assert time.monotonic() < deadline
    backend.freeze(SLOT, True)
    end(backend, SLOT)
    assert child.wait() == -signal.SIGKILL


def test_a_populated_group_is_not_removed(backend: CgroupBackend) -> None:
    """Only an empty slot goes; removing what is not there is nothing."""
    child = Child(backend, PAUSE)
    with pytest.raises(BedsitError, match="busy"):
        backend.remove(SLOT)
    end(backend, SLOT)
    child.wait()
    backend.remove(SLOT)
    backend.remove(SLOT)
    assert (backend.list(), backend.procs(SLOT), backend.populated(SLOT)) == ([], [], False)


def test_a_half_made_group_is_taken_back(backend: CgroupBackend) -> None:
    """When the last hierarchy refuses, the others are left as they were."""
    blocker = Path(backend.places()["unified"]) / "s00000001"
    blocker.mkdir()
    with pytest.raises(BedsitError, match="exists"):
        backend.create("s00000001")
    if blocker.exists():
        blocker.rmdir()
    assert backend.list() == [SLOT]


def test_a_later_daemon_finds_the_same_groups(backend: CgroupBackend) -> None:
    """By the places that the first one wrote down, wherever the second one itself was put."""
    again = detect("another name", backend.places())
    assert again.list() == [SLOT]
    assert again.places() == backend.places()


def test_verify_knows_who_is_inside(backend: CgroupBackend) -> None:
    """A process that is elsewhere is reported."""
    backend.set_limits(SLOT, LIMITS)
    assert f"process {os.getpid()} is not in" in str(backend.verify(SLOT, LIMITS, [os.getpid()]))


def test_hierarchies_without_controllers_are_known_as_such(tmp_path: Path) -> None:
    """A bare cgroup2 mount serves for the life cycle, not for limits."""
    assert not has_controllers(tmp_path)
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    assert has_controllers(tmp_path)


def test_limits_of_every_kind_read_back_and_change(backend: CgroupBackend) -> None:
    """Weight, idle, cores and bandwidth hold beside the others, live, and go back to none."""
    child = Child(backend, PAUSE)
    every = Limits(64 << 20, 20, 0.5, cpu_weight=300, cores="0", io_bps=10 << 20)
    for limits in (every, Limits(64 << 20, 20, 0.5, cpu_idle=True), every, LIMITS):
        backend.set_limits(SLOT, limits)
        assert backend.verify(SLOT, limits, [child.pid]) is None
    for other, word in (("cpu_weight", 200), ("cpu_idle", True), ("cores", "0"), ("io_bps", 1 << 20)):
        assert "not" in str(backend.verify(SLOT, dataclasses.replace(LIMITS, **{other: word}), []))
    end(backend, SLOT)
    child.wait()


def test_cores_hold_what_already_runs(backend: CgroupBackend) -> None:
    """A process that runs is moved at once, and gets all cores back."""
    everywhere = os.sched_getaffinity(0)
    backend.set_limits(SLOT, LIMITS)
    child = Child(backend, PAUSE)
    for cores, expected in (("0", {0}), ("all", everywhere)):
        backend.set_limits(SLOT, dataclasses.replace(LIMITS, cores=cores))
        assert os.sched_getaffinity(child.pid) == expected
    end(backend, SLOT)
    child.wait()


def test_who_is_idle_gets_what_others_leave(backend: CgroupBackend) -> None:
    """Two spinners on one core: with equal weights they share it, an idle one gets next to nothing."""
    other = "s00000001"
    backend.create(other)
    full = Limits(64 << 20, 20, 1.0, cores="0")
    spin = "while True: pass"
    for slot in (SLOT, other):
        backend.set_limits(slot, full)
    children = [Child(backend, spin, slot) for slot in (SLOT, other)]

    def share() -> float:
        """What the second got for each second of the first, over half a second of it."""
        began = [backend.stats(slot).cpu_usage_s for slot in (SLOT, other)]
        deadline = time.monotonic() + 60
        while (used := backend.stats(SLOT).cpu_usage_s - began[0]) < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return (backend.stats(other).cpu_usage_s - began[1]) / used

    assert 0.6 < share() < 1.6
    backend.set_limits(other, dataclasses.replace(full, cpu_weight=400))
    assert share() > 2.5
    backend.set_limits(other, dataclasses.replace(full, cpu_idle=True))
    assert share() < 0.2
    for slot, child in zip((SLOT, other), children, strict=True):
        end(backend, slot)
        child.wait()


def test_reading_is_held_to_the_bandwidth(backend: CgroupBackend, tmp_path: Path) -> None:
    """Three MiB past the page cache at one MiB a second cannot be done in less than about two seconds."""
    if not list_disks():
        pytest.skip("no disk to limit")
    path = tmp_path / "data"
    path.write_bytes(os.urandom(3 << 20))
    os.sync()
    backend.set_limits(SLOT, dataclasses.replace(LIMITS, io_bps=1 << 20))
    source = f"""
import mmap
fd = os.open({str(path)!r}, os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 256 << 10)
began = time.monotonic()
while os.readv(fd, [page]): pass
os.write(1, b"%d" % ((time.monotonic() - began) * 1000))
"""
    limited = Child(backend, source)
    took_ms = int(limited.read(20))
    limited.wait()
    backend.set_limits(SLOT, LIMITS)
    free = Child(backend, source)
    free_ms = int(free.read(20))
    free.wait()
    assert took_ms > 1500
    assert took_ms > 3 * free_ms


def test_cores_that_the_box_lacks_are_refused_by_name(backend: CgroupBackend) -> None:
    """Before anything is written, with what there is."""
    backend.set_limits(SLOT, LIMITS)
    with pytest.raises(BedsitError, match=r"cgroup\.refused: cpuset: this box has the cores .*, not 4095"):
        backend.set_limits(SLOT, dataclasses.replace(LIMITS, memory_bytes=32 << 20, cores="0,4095"))
    assert backend.verify(SLOT, LIMITS, []) is None


def test_the_kernels_own_refusal_of_cores_names_the_file(backend: CgroupBackend) -> None:
    """A core outside the group above is refused by the kernel itself, and nothing of that call stays."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    above = Limits(128 << 20, 40, 1.0, cores="0")
    backend.set_limits(SLOT, above)
    name = backend.limits_version
    with pytest.raises(BedsitError) as caught:
        set_below(backend, SLOT, Limits(64 << 20, 20, 0.5, cores="1"))
    assert caught.value.code == "cgroup.refused"
    assert caught.value.detail["file"].endswith("/below/cpuset.cpus"), name
    assert caught.value.detail["value"] == "1"


def set_below(backend: CgroupBackend, slot: str, limits: Limits) -> None:
    """Set limits on a group below the slot's, whatever comes of it, and check that it is then as before."""
    places = {controller: Path(place) / slot / "below" for controller, place in backend.places().items()}
    if backend.limits_version == "v2":
        group = places["unified"]
        (group.parent / "cgroup.subtree_control").write_text("+cpu +cpuset +memory +pids")
        made, groups = [group], V2Limits(group)
        group.mkdir()
    else:
        made = [group for name, group in places.items() if name != "unified"]
        for group in made:
            group.mkdir()
        inherit_cores(places["cpuset"])
        groups = V1Limits(places)
    first = Limits(64 << 20, 20, 0.5)
    try:
        groups.set(first)
        groups.set(limits)
    finally:
        difference = groups.find_difference(first)
        for group in made:
            group.rmdir()
        assert difference is None


@pytest.mark.parametrize(
    ("limits", "controllers", "words"),
    [
        (dataclasses.replace(LIMITS, cores="0"), {"memory", "io"}, "no cpuset controller"),
        (dataclasses.replace(LIMITS, io_bps=1), {"memory", "cpuset"}, "no io controller"),
        (dataclasses.replace(LIMITS, cores="3-0"), {"cpuset"}, "no range of cores"),
        (dataclasses.replace(LIMITS, cores="x"), {"cpuset"}, "no list of cores"),
    ],
)
def test_what_a_box_cannot_hold_names_the_controller(limits: Limits, controllers: set[str], words: str) -> None:
    """A limit is refused, never ignored."""
    with pytest.raises(BedsitError, match=words):
        check_limits(limits, controllers)
    check_limits(LIMITS, controllers)


@given(st.frozensets(st.integers(0, 300)))
def test_core_lists_are_the_kernels(numbers: frozenset[int]) -> None:
    """What is written is read back as the same set, in the shortest form."""
    text = format_cores(numbers)
    assert (parse_cores(text) if text else frozenset()) == numbers
    assert text == "" or format_cores(parse_cores(text)) == text


V2_FILES = {
    "memory.max": "max",
    "memory.current": "1000",
    "memory.swap.max": "max",
    "pids.max": "max",
    "cpu.max": "max 100000",
    "cpu.idle": "0",
    "cpu.weight": "100",
    "cpuset.cpus": "",
    "cpuset.cpus.effective": "0",
    "io.max": "",
}


def test_v2_writes_what_the_kernel_reads(tmp_path: Path) -> None:
    """The text of each v2 file, on a box whose limits are v1's: the kernel's own answer is tested where there is v2."""
    for name, text in V2_FILES.items():
        (tmp_path / name).write_text(text + "\n")
    V2Limits(tmp_path).set(Limits(100_000_000, 50, 1.5, cpu_weight=250, cores="0", io_bps=1000))

    said = {name: (tmp_path / name).read_text() for name in V2_FILES}
    assert said["memory.max"] == "99999744"
    assert said["memory.swap.max"] == "0"
    assert said["pids.max"] == "50"
    assert said["cpu.max"] == "150000 100000"
    assert (said["cpu.idle"], said["cpu.weight"], said["cpuset.cpus"]) == ("0\n", "250", "0")
    assert said["io.max"] in [f"{disk} rbps=1000 wbps=1000" for disk in list_disks()] or not list_disks()


def test_v2_does_not_kill_to_shrink(tmp_path: Path) -> None:
    """Less memory than is in use is refused as on v1, with the old limits back, though the kernel would take it."""
    for name, text in V2_FILES.items():
        (tmp_path / name).write_text(text + "\n")
    limits = V2Limits(tmp_path)
    limits.set(Limits(64 << 20, 20, 0.5))
    (tmp_path / "memory.current").write_text(str(32 << 20))
    with pytest.raises(BedsitError, match=r"memory\.max: more is in use") as caught:
        limits.set(Limits(16 << 20, 30, 1.0, cpu_idle=True))
    assert (caught.value.detail["errno"], caught.value.detail["value"]) == (16, str(16 << 20))
    assert limits.find_difference(Limits(64 << 20, 20, 0.5)) is None


def test_v2_notices_cores_that_the_kernel_did_not_give(tmp_path: Path) -> None:
    """v2 takes any number and gives what there is; that is a refusal too."""
    for name, text in V2_FILES.items():
        (tmp_path / name).write_text(text + "\n")
    with pytest.raises(BedsitError, match="the kernel gives the cores 0 for '0-1'"):
        V2Limits(tmp_path).set(Limits(64 << 20, 20, 0.5, cores="0-1"))
    assert (tmp_path / "cpuset.cpus").read_text().strip() == ""


def test_oom_in_a_slot_kills_only_that_slot(house: Any, spawn: Any, shell_zygote: Any) -> None:
    """The guilty worker dies, its init reports signal 9, the counter says OOM; the neighbour does not notice."""
    from bedsit.ipc import seqpacket

    neighbour = spawn(shell_zygote)
    guilty = spawn(shell_zygote, Limits(64 << 20, 64, 1.0))
    with guilty.connect() as sock:
        logs = [os.memfd_create("log") for _ in range(2)]
        body = b"eaten = []\nwhile True: eaten.append(bytearray(b'x' * (1 << 20)))"
        message = {"op": "assign", "body": body, "log_bytes": 1 << 16, "fds": ["log", "log"]}
        seqpacket.send_packet(sock, message, logs)
        seqpacket.close_all(logs)
        assert seqpacket.recv_packet(sock)[0] == {"op": "assigned"}
        # On v2 the kernel ends the slot as one (memory.oom.group): nobody is left to report.
        report = {"v1": {"op": "exited", "status": 9}, "v2": None}[house.backend.limits_version]
        assert seqpacket.recv_packet(sock)[0] == report
    assert house.backend.oom_kills(guilty.id) >= 1
    assert house.backend.oom_kills(neighbour.id) == 0
    assert neighbour.run("result = 'fine'") == "fine"
