"""Turns on a shared core, with real daemon, router and jailed workers: who goes along, and who does not."""

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bedsit
from bedsit.ipc.errors import BedsitError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores"),
]
LAST = max(os.sched_getaffinity(0))
HARD_S = 0.4
#: Burns so many seconds in steps (0: in one), and says how often it stood still in between; below 0 it is hostile.
BURNER = """
    import os, signal, time
    import torch

    def build(bundle):
        def burn(seconds):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass

        def call(x):
            seconds, step = float(x[0, 0]), float(x[0, 1])
            if seconds == -1:  # goes on whatever happens
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                    signal.signal(number, signal.SIG_IGN)
                while True:
                    try:
                        burn(1.0)
                    except BaseException:
                        pass
            if seconds == -2:
                burn(0.05)
                os._exit(7)
            if seconds == -3:  # says that it yields, and burns on
                from bedsit.ipc.leasepage import split_word
                from bedsit.ipc.slot import Word
                words = bundle.turns._words
                while True:
                    burn(0.02)
                    bundle.turns._say(Word.YIELD, split_word(words[0])[1])
            yielded = 0
            while seconds > 0:
                burn(min(step or seconds, seconds))
                seconds -= step or seconds
                before = time.monotonic()
                bundle.yield_point()
                yielded += time.monotonic() - before > 0.001
            return torch.full_like(x, float(yielded))
        return call
"""


@pytest.fixture(scope="module")
def module_box(make_module_box: Any) -> Any:
    """A box with a shared core, where a turn may be kept for a moment."""
    return make_module_box(**{"devices.shared_cores.turns": str(LAST), "devices.hard_ms": HARD_S * 1e3})


def add(box: Any, *names: str, share: float = 0.2) -> None:
    """Tenants with that part of the core's time each, and the model."""
    for name in names:
        box.tenant(name, device=f"core:{share}")
        box.deploy(name, source=BURNER, idempotent=False)


def burn(box: Any, tenant: str, seconds: float, step: float = 0.0, timeout_s: float = 30.0) -> int:
    """One call; gives how often it yielded."""
    with bedsit.Client(tenant=tenant, run_dir=box.run) as client:
        x = np.array([[seconds, step, 0.0, 0.0]], np.float32)
        return int(client.infer("echo", {"x": x}, timeout_s=timeout_s)["x"][0, 0])


@contextmanager
def later(box: Any, tenant: str, seconds: float, step: float = 0.0) -> Iterator["Future[int]"]:
    """A call that runs by now."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(burn, box, tenant, seconds, step)
        box.wait(lambda: [row for row in box.ps(tenant=tenant) if row["in_flight"]])
        yield future


def device_s(box: Any, tenant: str) -> float:
    """What tenants of that name have paid for, those that are gone with it."""
    rows = box.call("usage.list", by="tenant", tenant=tenant)["usage"]
    return float(sum(row["device_s"] for row in rows))


def test_long_calls_share_a_core_by_yielding(shared_box: Any) -> None:
    """Two calls of a second each, that yield, both end after two, and each stood still many times."""
    add(shared_box, "acme", "beta")
    with later(shared_box, "acme", 1.0, 0.001) as first, later(shared_box, "beta", 1.0, 0.001) as second:
        assert first.result(30) > 10
        assert second.result(30) > 10


def test_a_short_call_gets_in_between(shared_box: Any) -> None:
    """It waits for a turn of the long one, and not for its end."""
    add(shared_box, "acme", "beta")
    burn(shared_box, "beta", 0.001)
    with later(shared_box, "acme", 3.0, 0.001) as long:
        for _ in range(5):
            burn(shared_box, "beta", 0.001)
            assert not long.done()
        assert long.result(30) >= 5


def test_who_is_alone_may_take_its_time(shared_box: Any) -> None:
    """Nobody waits, so nothing is kept from anybody."""
    add(shared_box, "acme")
    before = len(shared_box.events("turn.overrun"))
    assert burn(shared_box, "acme", 3 * HARD_S) == 0
    assert len(shared_box.events("turn.overrun")) == before


def test_a_worker_that_never_yields_is_ended_and_the_other_served(shared_box: Any) -> None:
    """Within a second; it is charged for all that it kept, and its operator reads why. Then it may begin anew."""
    add(shared_box, "acme", "beta")
    before = device_s(shared_box, "acme")
    slot = shared_box.ps(tenant="acme")[0]["slot"]
    with later(shared_box, "acme", -1) as hog:
        began = time.monotonic()
        burn(shared_box, "beta", 0.001)
        served_s = time.monotonic() - began
        with pytest.raises(BedsitError, match=r"model\.timeout"):
            hog.result(30)
    assert served_s < 1.0

    event = shared_box.wait_event("turn.overrun", tenant="acme", slot=slot)
    assert "kept turns for 0." in event["text"]
    died = shared_box.wait_event("slot.died", tenant="acme", slot=slot)
    assert died["cause"] == "timeout"
    assert device_s(shared_box, "acme") - before >= HARD_S
    assert burn(shared_box, "acme", 0.001) == 0
    assert shared_box.call("tenant.show", name="acme")["restarts"] == 1


def test_who_dies_in_its_turn_keeps_it_no_longer(shared_box: Any) -> None:
    """The other's call begins at once."""
    add(shared_box, "acme", "beta")
    before = len(shared_box.events("turn.overrun"))
    with later(shared_box, "acme", -2) as dead:
        burn(shared_box, "beta", 0.01)
        with pytest.raises(BedsitError, match=r"worker\.crashed"):
            dead.result(30)
    assert len(shared_box.events("turn.overrun")) == before


def test_a_worker_that_lies_of_its_turns_is_ended(shared_box: Any) -> None:
    """It says that it yields and burns on: the kernel counts what its turns do not explain."""
    add(shared_box, "acme", share=0.02)
    add(shared_box, "beta", share=0.9)
    slot = shared_box.ps(tenant="acme")[0]["slot"]
    with later(shared_box, "acme", -3) as liar, later(shared_box, "beta", 60.0, 0.001) as honest:
        told = shared_box.wait_event("turn.evaded", tenant="acme", slot=slot)
        shared_box.wait_event("slot.died", tenant="acme", slot=slot)
        with pytest.raises(BedsitError):
            liar.result(30)
        shared_box.call("tenant.stop", name="beta")
        with pytest.raises(BedsitError):
            honest.result(30)
    assert "of the time without having a turn" in told["text"]


def test_turns_go_on_without_the_daemon(shared_box: Any) -> None:
    """Who keeps one loses it all the same; the next daemon is told, and ends the slot."""
    add(shared_box, "acme", "beta")
    slot = shared_box.ps(tenant="acme")[0]["slot"]
    with later(shared_box, "acme", -1) as hog:
        shared_box.kill_daemon()
        for _ in range(3):
            burn(shared_box, "beta", 0.001)
        shared_box.start()
        shared_box.wait_event("turn.overrun", tenant="acme", slot=slot)
        with pytest.raises(BedsitError):
            hog.result(30)
    burn(shared_box, "acme", 0.001)


def test_turns_go_on_with_the_next_router(shared_box: Any) -> None:
    """Who ran is answered or told, and the core is the next one's to give, to those who ran there, too."""
    add(shared_box, "acme", "beta")
    with later(shared_box, "acme", 5.0, 0.001) as lost, later(shared_box, "beta", 0.5, 0.001):
        shared_box.router.kill()
        shared_box.router.wait()
        shared_box.start_router()
        with suppress(BedsitError):
            assert lost.result(60) >= 0  # its client asked once more
    for name in ("acme", "beta"):
        burn(shared_box, name, 0.001, timeout_s=60.0)


def test_a_tenant_that_is_deleted_has_paid(shared_box: Any) -> None:
    """What it took stays in the ledger under its name, with the model and the version that ran."""
    add(shared_box, "acme")
    burn(shared_box, "acme", 0.3)
    shared_box.call("tenant.delete", name="acme")
    shared_box.wait(lambda: not shared_box.ps(tenant="acme"))

    assert device_s(shared_box, "acme") >= 0.3
    rows = shared_box.call("usage.list", by="model", tenant="acme")["usage"]
    last = rows[-1]  # before it are tenants of other tests that are gone
    assert (last["model"], last["version"]) == ("echo", 1)
    assert last["device_s"] > 0.25
    row = shared_box.call("usage.list", by="tenant", tenant="acme")["usage"][-1]
    assert row["cpu_s"] >= 0.1
    assert row["memory_gib_s"] > 0


@pytest.fixture
def frozen_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on which a write waits in the kernel, whatever is sent to its process, until the test is over."""
    if not Path("/dev/loop-control").exists():
        pytest.skip("needs loop devices")
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 16 << 20)
    for words in (("mkfs.ext4", "-q", image), ("mount", "-o", "loop", image, folder), ("fsfreeze", "-f", folder)):
        subprocess.run(list(map(str, words)), check=True)
    yield folder
    with suppress(subprocess.CalledProcessError):
        subprocess.run(["fsfreeze", "-u", str(folder)], check=True, stderr=subprocess.DEVNULL)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_device_on_which_a_slot_does_not_end_takes_nobody_new(shared_box: Any, frozen_disk: Path) -> None:
    """Others there run on; when the kernel lets it go, all is as before."""
    add(shared_box, "acme", "beta")
    slot = shared_box.ps(tenant="acme")[0]["slot"]
    stuck = subprocess.Popen(["dd", "if=/dev/zero", f"of={frozen_disk}/x", "count=1"], stderr=subprocess.DEVNULL)
    state = Path(f"/proc/{stuck.pid}/status")
    shared_box.wait(lambda: "State:\tD" in state.read_text())
    (group,) = [each for root in shared_box.groups() for each in root.rglob(slot) if (each / "cgroup.kill").exists()]
    (group / "cgroup.procs").write_text(str(stuck.pid))
    with later(shared_box, "acme", -1):
        burn(shared_box, "beta", 0.001)
        told = shared_box.wait_event("device.degraded")
        assert (slot in told["text"], told["text"].startswith("turns: ")) == (True, True)
        with pytest.raises(BedsitError, match=r"device\.full.*does not end"):
            shared_box.tenant("gamma", device="core:0.1")
        burn(shared_box, "beta", 0.001)
        subprocess.run(["fsfreeze", "-u", str(frozen_disk)], check=True)
        stuck.wait()
        shared_box.wait_event("device.recovered")
    shared_box.wait(lambda: shared_box.ps(tenant="acme", state="serving"))
    burn(shared_box, "acme", 0.001)
