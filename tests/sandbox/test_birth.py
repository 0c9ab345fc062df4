"""A slot's first process: forked into its group, by clone3 or by an older kernel's clone; and what works then."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Spawn = Callable[..., Any]


@pytest.fixture(scope="module", params=["clone3", "clone"])
def warm(house: Any, request: pytest.FixtureRequest) -> Any:
    """A zygote with torch, on this kernel or as on one that cannot fork into a group."""
    return house.start_zygote("--torch", *(["--old-kernel"] if request.param == "clone" else []))


def find_folders(pid: int) -> list[str]:
    """The folders that a process holds open."""
    folder = Path(f"/proc/{pid}/fd")
    return [str(fd.readlink()) for fd in folder.iterdir() if stat.S_ISDIR(fd.stat().st_mode)]


def test_every_wall_stands(spawn: Spawn, warm: Any) -> None:
    """Either way the slot is in its groups, its first process is pid 1, and nothing else differs."""
    slot = spawn(warm)
    walls = slot.walls()
    assert {name: walls[name] for name in ("cgroup_limits", "pid_namespace", "closed_descriptors")} == {
        "cgroup_limits": "on",
        "pid_namespace": "on",
        "closed_descriptors": "on",
    }
    assert slot.answer["missing"] == {}
    assert sorted(slot.backend.procs(slot.id)) == sorted([slot.pid, slot.worker])


def test_torch_works_on_one_thread_and_on_two(spawn: Spawn, warm: Any) -> None:
    """A pool of threads and a backward pass, which has threads of its own, in a worker that no library saw forked."""
    found = spawn(warm).run("""
import torch
x = torch.randn(256, 256, requires_grad=True)
one = x @ x
torch.set_num_threads(2)
two = x @ x
(two.sin() @ torch.nn.functional.relu(two)).sum().backward()
result = {
    "same": bool(torch.allclose(one, two, rtol=1e-3, atol=1e-3)),
    "grad": list(x.grad.shape),
    "threads": torch.get_num_threads(),
}
""")
    assert found == {"same": True, "grad": [256, 256], "threads": 2}


def test_python_works(spawn: Spawn, warm: Any) -> None:
    """Threads, locks, queues, signals to itself, timers, faulthandler, imports and the collector."""
    found = spawn(warm).run("""
import faulthandler, gc, os, queue, signal, tempfile, threading, time
heard, results = [], queue.Queue()
lock = threading.RLock()

def work(number):
    with lock, lock:
        results.put(number * number)

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]

began = time.monotonic()
ran = threading.Event()
timer = threading.Timer(0.01, ran.set)
timer.start()

with tempfile.TemporaryFile() as file:
    faulthandler.dump_traceback(file)
    dumped = file.tell() > 0
    faulthandler.dump_traceback_later(60, file=file)
    faulthandler.cancel_dump_traceback_later()

signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
signal.raise_signal(signal.SIGUSR1)
result = {
    "squares": sorted(results.get() for _ in threads),
    "timer": ran.wait(10) and time.monotonic() >= began,
    "dumped": dumped,
    "heard": heard,
    "main": threading.current_thread() is threading.main_thread(),
    "alive": threading.active_count() <= 2,
    "ids": [os.getpid(), os.getppid(), threading.get_native_id()],
    "collected": gc.collect() >= 0,
}
""")
    assert found == {
        "squares": [0, 1, 4, 9],
        "timer": True,
        "dumped": True,
        "heard": [10],
        "main": True,
        "alive": True,
        "ids": [2, 1, 2],
        "collected": True,
    }


def test_no_folder_of_the_box_enters(spawn: Spawn, warm: Any) -> None:
    """The group's folder was a way out of the root for whoever held it: neither process has any folder open."""
    slot = spawn(warm)
    assert (find_folders(slot.pid), find_folders(slot.worker)) == ([], [])


def test_without_its_step_the_folder_would_stay(box: Any) -> None:
    """The wall is close_descriptors: with a bad one init holds the group's folder, and the inspection says so."""
    slot = box.spawn(box.start_zygote("--bad", "close_descriptors"))
    assert any(folder.endswith(slot.id) for folder in find_folders(slot.pid))
    assert slot.walls()["closed_descriptors"].startswith("off: ")


@pytest.mark.parametrize("old", [False, True])
def test_the_group_is_there_before_the_first_instruction(box: Any, *, old: bool) -> None:
    """A slot that never joins is in its cgroup2 group, for it was born there; on an older kernel it is not."""
    options = ("--without", "join_cgroup,cgroup_namespace", *(["--old-kernel"] if old else []))
    slot = box.spawn(box.start_zygote(*options))
    assert (slot.pid in slot.backend.procs(slot.id)) is not old


def test_joining_is_the_second_wall(box: Any) -> None:
    """A slot that is born outside its group moves into it, and every limit holds."""
    slot = box.spawn(box.start_zygote("--without", "own_group"))
    assert slot.walls()["cgroup_limits"] == "on"


def test_a_group_that_is_none_is_an_error(house: Any, shell_zygote: Any) -> None:
    """A kernel that cannot is asked in another way; a wrong group is never answered by a slot outside of one."""
    folder = os.open("/tmp", os.O_PATH | os.O_DIRECTORY)
    answer, slot, build, *_ = house.order(shell_zygote, group=folder)
    os.close(folder)
    os.close(build)
    assert (answer["ok"], answer["step"], answer["errno"]) == (False, "fork", errno.EBADF)
    assert not house.backend.populated(slot)
    house.backend.remove(slot)
    assert shell_zygote.ask({"op": "hello"})["ok"]
