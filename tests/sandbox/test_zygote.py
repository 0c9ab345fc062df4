"""The real zygote, with torch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bedsit
from bedsit.sandbox.zygote import PROTOCOL
from tests_support.marks import NUMBERS


@pytest.fixture(scope="module")
def warm(house: Any) -> Any:
    """A zygote with torch whose workers run what they are assigned."""
    return house.start_zygote("--torch")


def test_it_has_one_thread_and_no_environment(warm: Any) -> None:
    """After importing torch and numpy and running both: one thread, and nothing in its environment."""
    assert len(list(Path(f"/proc/{warm.process.pid}/task").iterdir())) == 1


def test_it_says_who_it_is(box: Any) -> None:
    """The program itself, started as the daemon starts it."""
    zygote = box.start_zygote(command=("-m", "bedsit.sandbox.zygote", "--socket", "SOCKET", "--generation", "3"))
    answer = zygote.ask({"op": "hello"})
    assert answer == {
        "ok": True,
        "generation": 3,
        "pid": zygote.process.pid,
        "version": bedsit.__version__,
        "forks": 0,
        "protocol": PROTOCOL,
    }
    assert zygote.path.stat().st_mode & 0o777 == 0o700 & ~0o077
    slot = box.spawn(zygote)
    assert slot.answer["missing"] == {}
    assert {state for name, state in slot.walls().items() if name not in ("landlock", "seccomp")} == {"on"}
    assert zygote.ask({"op": "hello"})["forks"] == 1


def test_torch_works_in_the_jail(spawn: Any, warm: Any) -> None:
    """Two threads, a convolution, a backward pass, and modules that nobody had imported yet."""
    slot = spawn(warm)
    found = slot.run("""
import torch, numpy, tomllib, sqlite3, ssl, email.message, torch.utils.benchmark, torch.nn.utils.prune
torch.set_num_threads(2)
x = torch.randn(256, 256, requires_grad=True)
(torch.nn.Conv2d(1, 4, 3)(x[None, None]).sum()).backward()
result = {"grad": list(x.grad.shape), "threads": torch.get_num_threads(), "mean": float((x @ x).mean()) < 10}
""")
    assert found == {"grad": [256, 256], "threads": 2, "mean": True}


@NUMBERS(part="twin", outcome="random numbers")
def test_tensors_are_random_in_each_slot(spawn: Any, warm: Any) -> None:
    """torch, numpy and random are all reseeded."""
    source = "import random, numpy, torch; result = [random.random(), numpy.random.rand(), float(torch.rand(1))]"
    first, second = (spawn(warm).run(source) for _ in range(2))
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_workers_share_the_zygotes_memory(spawn: Any, warm: Any) -> None:
    """A blank worker owns a small part of what it maps: the copy is lazy."""
    slot = spawn(warm)
    rollup = Path(f"/proc/{slot.worker}/smaps_rollup").read_text()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    assert kib["Private_Dirty"] < kib["Rss"] / 4


def test_it_refuses_an_environment(tmp_path: Path) -> None:
    """What is in the zygote's memory is in every tenant's: it does not start with a variable it does not know."""
    done = subprocess.run(
        [sys.executable, "-I", "-m", "bedsit.sandbox.zygote", "--socket", str(tmp_path / "z"), "--generation", "1"],
        env={"AWS_SECRET": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "AWS_SECRET" in done.stderr


def test_a_second_thread_stops_all_forks(box: Any) -> None:
    """A zygote with two threads answers, but never forks again."""
    program = "import sys, threading, signal; threading.Thread(target=signal.pause, daemon=True).start(); "
    program += "from bedsit.sandbox.zygote import serve; serve(sys.argv[1], 1, entry=print)"
    answer, _, build, *_ = box.order(box.start_zygote(command=("-c", program, "SOCKET")))
    os.close(build)
    assert (answer["ok"], answer["step"]) == (False, "one_thread")
