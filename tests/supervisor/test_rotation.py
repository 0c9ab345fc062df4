"""A zygote that has forked enough makes room for the next one, under a real daemon."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests_support.marks import LAYOUT

pytestmark = pytest.mark.root

POOL, FORKS = 2, 5


@pytest.fixture
def box(new_box: Callable[[], Any]) -> Any:
    """A box whose zygotes fork five times."""
    made = new_box()
    made.settings |= {"pool_size": POOL, "zygote_forks_max": FORKS}
    return made.start(blank=POOL)


def find_libc(pid: int) -> int:
    """Where a process has the C library."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return min(int(line.split("-")[0], 16) for line in lines if line.endswith("/libc.so.6"))


def find_workers(box: Any, **fields: Any) -> list[int]:
    """The workers of the slots whose rows have these fields."""
    return [row["worker_pid"] for row in box.ps(**fields)]


def replace_blank(box: Any) -> None:
    """Kill a blank slot and wait until the pool is full again."""
    row = box.ps(state="blank")[0]
    os.kill(row["init_pid"], signal.SIGKILL)
    box.wait_event("slot.destroyed", slot=row["slot"])
    box.wait(lambda: box.pool() >= POOL)


def rotate(box: Any) -> None:
    """Use up the first generation, and wait until the second one has replaced its blank slots."""
    while box.call("status")["zygote"]["generation"] == 1 and box.call("status")["zygote"]["forks"] < FORKS:
        replace_blank(box)
    box.wait_event("zygote.retired")
    box.wait(lambda: [row["generation"] for row in box.ps(state="blank")] == [2] * POOL)


@LAYOUT(part="attack", outcome="other addresses")
def test_slots_of_the_next_generation_have_other_addresses(box: Any) -> None:
    """Siblings share a layout; after the rotation no blank slot has it any more, and the old zygote is gone."""
    old = box.call("status")["zygote"]["pid"]
    before = {find_libc(worker) for worker in find_workers(box, state="blank")}
    rotate(box)
    after = {find_libc(worker) for worker in find_workers(box, state="blank")}

    assert len(before) == len(after) == 1
    assert before != after
    (event,) = box.events("zygote.retired")
    assert event["text"] == f"generation 1 forked {FORKS} slots; generation 2 replaces it and its blank slots"
    box.wait(lambda: not Path(f"/proc/{old}").exists())
    assert not (box.run / "zygotes" / "1.sock").exists()


@LAYOUT(part="twin", outcome="a slot in use stays")
def test_a_slot_in_use_stays(box: Any) -> None:
    """A tenant's slot of the old generation serves on, in the same process."""
    box.start_router()
    box.tenant("vision")
    box.deploy("vision")
    (before,) = box.ps(tenant="vision")
    box.wait(lambda: box.pool() >= POOL)
    rotate(box)
    (after,) = box.ps(tenant="vision")

    assert (after["init_pid"], after["state"], after["generation"]) == (before["init_pid"], "serving", 1)


def test_the_pool_is_never_empty_meanwhile(box: Any) -> None:
    """Out of the events, in order: between the new zygote and the last replacement there is always a full pool."""
    rotate(box)
    box.wait(lambda: len(box.ps()) == POOL)  # the old ones are gone altogether
    events = box.events()
    start = next(number for number, event in enumerate(events) if event["kind"] == "zygote.retired")
    blank = sum({"slot.ready": 1, "slot.died": -1}.get(event["kind"], 0) for event in events[:start])
    counts = [blank]
    for event in events[start:]:
        counts.append(counts[-1] + {"slot.ready": 1, "slot.destroyed": -1}.get(event["kind"], 0))

    assert min(counts) == POOL
    assert counts[-1] == POOL
    assert len(counts) > 2 * POOL


def test_the_next_daemon_goes_on(box: Any) -> None:
    """A daemon that is killed in the middle of a rotation leaves one that its successor finishes."""
    while box.call("status")["zygote"]["generation"] == 1 and box.call("status")["zygote"]["forks"] < FORKS:
        replace_blank(box)
    box.wait_event("zygote.retired")
    box.kill_daemon()
    box.start(blank=POOL)

    box.wait(lambda: [row["generation"] for row in box.ps(state="blank")] == [2] * POOL)
    assert box.call("status")["zygote"]["generation"] == 2
