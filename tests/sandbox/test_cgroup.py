"""Limits that the kernel really holds, on this box's own cgroups."""

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

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import CgroupBackend, Limits, detect
from bedsit.sandbox.cgroup.v2 import has_controllers

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

    def __init__(self, backend: CgroupBackend, source: str) -> None:
        fds = backend.open_join_fds(SLOT)
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


def test_v2_writes_what_the_kernel_reads(tmp_path: Path) -> None:
    """The text of each v2 file, on a box whose limits are v1's: the kernel's own answer is tested where there is v2."""
    from bedsit.sandbox.cgroup.lifecycle import Lifecycle
    from bedsit.sandbox.cgroup.v2 import V2Backend

    made = V2Backend(Lifecycle(tmp_path))
    made.create("s1")
    folder = tmp_path / "s1"
    for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max"):
        (folder / name).write_text("max\n")
    made.set_limits("s1", Limits(100_000_000, 50, 1.5))
    assert (folder / "memory.max").read_text() == "99999744"
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "pids.max").read_text() == "50"
    assert (folder / "cpu.max").read_text() == "150000 100000"
    assert (folder / "memory.oom.group").read_text() == "1"


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
        assert seqpacket.recv_packet(sock)[0] == {"op": "exited", "status": 9}
    assert house.backend.oom_kills(guilty.id) >= 1
    assert house.backend.oom_kills(neighbour.id) == 0
    assert neighbour.run("result = 'fine'") == "fine"
