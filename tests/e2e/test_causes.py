"""Each way in which a slot can end, for real: what the caller, the event, `tenant show` and `ps` say of it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bedsit import BedsitError, Client
from tests_support.box import Box, wait_until
from tests_support.bundles import write_bundle

MORTAL = """
import ctypes, os, threading, time
import torch

def leave():
    os._exit(3)

def fault():
    ctypes.string_at(0)

def ask_for_too_much():
    ctypes.CDLL(None).syscall(165, 0, 0, 0, 0, 0)  # mount
    time.sleep(600)

def eat():
    hoard = []
    while True:
        hoard.append(bytearray(b"x" * (8 << 20)))

def breed():
    try:
        while True:
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    except RuntimeError:
        os.abort()

def hang_up():
    os.closerange(3, 1024)
    time.sleep(600)

WAYS = [leave, fault, ask_for_too_much, eat, breed, hang_up]

def build(bundle):
    def call(x):
        if float(x[0]) >= 0:
            WAYS[int(x[0])]()
        return x
    return call
"""

SLOW = """
import time

def build(bundle):
    time.sleep(600)
"""

ENDS = [
    ("exit", 0, "exit status 3"),
    ("signal", 1, "signal 11 (SIGSEGV)"),
    ("seccomp", 2, "a system call that the jail kills for (SIGSYS)"),
    ("oom", 3, "out of memory: limit 384 MiB"),
    ("pids", 4, "out of processes: limit 48"),
    ("killed", 5, "closed its connection to the router and went on running"),
]


@pytest.fixture(scope="module")
def room(shared_box: Box, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """Tenant ``guest`` with a model that dies as it is told."""
    bundle = write_bundle(tmp_path_factory.mktemp("causes"), "mortal", MORTAL, idempotent=False)
    shared_box.json("tenant", "create", "guest", "--memory", "384MiB", "--pids", "48")
    shared_box.json("model", "deploy", "guest", str(bundle))
    return shared_box


def ask(box: Box, way: float) -> float:
    """One request of tenant ``guest``."""
    with Client("guest", run_dir=str(box.run_dir)) as client:
        return float(client.infer("mortal", {"x": np.array([way], np.float32)}, timeout_s=60)["y"][0])


def await_death(box: Box, cause: str, text: str) -> None:
    """Wait until event, `tenant show` and `ps` agree."""
    died = [e for e in box.items("events", "--tenant", "guest") if e["kind"] == "slot.died"][-1]
    assert (died["cause"], died["text"]) == (cause, f"while serving: {text}")
    assert ask(box, -1) == -1
    shown = box.json("tenant", "show", "guest")
    assert (shown["last_cause_kind"], shown["last_cause"]) == (cause, text)
    (row,) = [row for row in box.items("ps") if row["tenant"] == "guest"]
    assert row["last_cause"] == cause


@pytest.mark.parametrize(("cause", "way", "text"), ENDS, ids=[end[0] for end in ENDS])
def test_every_end_has_its_cause(room: Box, cause: str, way: int, text: str) -> None:
    """The caller gets worker.crashed, everybody else the word and the sentence, and the next slot serves."""
    room.json("tenant", "start", "guest")  # it forgives what was before: no long rest
    with pytest.raises(BedsitError) as caught:
        ask(room, way)

    assert caught.value.code == "worker.crashed"
    await_death(room, cause, text)


def test_a_kill_from_outside_is_a_signal_and_not_ours(room: Box) -> None:
    """Signal 9 by an operator's hand is told from the kernel's at the memory limit, and from the daemon's."""
    assert ask(room, -1) == -1
    before = room.json("tenant", "show", "guest")["restarts"]
    os.kill(room.json("tenant", "show", "guest")["worker_pid"], signal.SIGKILL)
    wait_until(lambda: room.json("tenant", "show", "guest")["restarts"] == before + 1)

    await_death(room, "signal", "signal 9 (SIGKILL)")


@pytest.fixture
def other_box() -> Iterator[Box]:
    """A box beside the one that the tests share."""
    with Box({"pool_size": 1, "uid_base": 1_940_000_000}) as made:
        yield made


def test_what_is_not_ready_in_time_is_a_timeout(other_box: Box, tmp_path: Path) -> None:
    """A model that never comes up is ended by the daemon, which says after how long."""
    other_box.json("tenant", "create", "guest")
    bundle = write_bundle(tmp_path, "slow", SLOW)
    done = other_box.run("model", "deploy", "guest", str(bundle), "--timeout", "2s")

    assert done.returncode != 0
    died = [e for e in other_box.items("events", "--tenant", "guest") if e["kind"] == "slot.died"]
    assert [(e["cause"], e["text"]) for e in died] == [("timeout", "while loading: not loaded within 2 s")]
