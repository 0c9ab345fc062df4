"""Attempts to have more than one's share: scratch, descriptors, memory, processes, processor time."""

import functools
from pathlib import Path
from typing import Any

from bedsit.sandbox.cgroup import Limits
from tests_support.attempts import RIGHTS, Attempt, Ended, Ground, Props, Removal, attempt, make_tests
from tests_support.slots import LIMITS, House, Slot, Zygote, wait_until

SMALL = Limits(memory_bytes=64 << 20, pids_max=64, cpus=1.0)
CROWDED = Limits(memory_bytes=1 << 30, pids_max=10_000, cpus=1.0)
SLOW = Limits(memory_bytes=512 << 20, pids_max=64, cpus=0.05)
KILLED = Ended(9)
CHILDREN = """
import os, signal, time
def fork():
    if os.fork() == 0:
        while True:
            signal.pause()
"""
THREADS = """
import threading
stop = threading.Event()
def start():
    threading.Thread(target=stop.wait, daemon=True).start()
"""
ADJUST = "result = attempt(lambda: open('/proc/self/oom_score_adj', 'wb', 0).write(b'{}'))"
TOUCH = """
import os
file = os.memfd_create("x")
for _ in range(128):
    os.write(file, bytes(1 << 20))
"""


def check_out_of_memory(slot: Slot, _: Props) -> None:
    """The kernel says why it was killed."""
    assert slot.backend.oom_kills(slot.id) > 0


def check_memory_is_left(slot: Slot, _: Props) -> None:
    """Whatever ended it, it was not that."""
    assert slot.backend.oom_kills(slot.id) == 0


def check_throttled(slot: Slot, _: Props) -> None:
    """The kernel took the processor away."""
    assert slot.backend.stats(slot.id).throttled_s > 0


def check_not_throttled(slot: Slot, _: Props) -> None:
    """Nobody did."""
    assert slot.backend.stats(slot.id).throttled_s == 0


def fill(*folders: str) -> str:
    """Write three times what fits."""
    return f"""
def fill(folder):
    with open(folder + "/big", "wb") as file:
        for _ in range(48):
            file.write(bytes(1 << 20))
result = every([attempt(lambda folder=folder: fill(folder)) for folder in {folders!r}])
"""


def eat(mib: int) -> str:
    """Memory that is really there."""
    return f"kept = [b'x' * (1 << 20) for _ in range({mib})]; result = 'ok'"


def spin(seconds: float) -> str:
    """Processor time, not wall time: it takes as long as the quota makes it take."""
    return f"""
import time
while time.process_time() < {seconds}:
    pass
result = "ok"
"""


ATTEMPTS = (
    Attempt(
        "4",
        "fill /tmp and /dev/shm",
        first="size of the scratch folders",
        second="memory cgroup",
        source=fill("/tmp", "/dev/shm"),
        refused="No space left on device",
        twin="open('/tmp/x', 'wb').write(bytes(8 << 20)); result = 'ok'",
        removals=(
            Removal(KILLED, bad="scratch:endless", limits=SMALL, check=check_out_of_memory),
            Removal("ok", bad="scratch:endless"),
        ),
    ),
    Attempt(
        "5",
        "a flood of empty files",
        first="inodes of the scratch folders",
        second="memory cgroup",
        source="result = attempt(lambda: [open(f'/tmp/{number}', 'w').close() for number in range(5000)])",
        refused="No space left on device",
        twin="result = attempt(lambda: [open(f'/tmp/{number}', 'w').close() for number in range(1000)])",
        removals=(Removal("ok", bad="scratch:endless"),),
    ),
    Attempt(
        "13",
        "fork bomb where children are allowed",
        first="pids.max",
        second="RLIMIT_NPROC",
        profile="subprocess",
        source=CHILDREN + "result = attempt(lambda: [fork() for _ in range(300)])",
        refused="Resource temporarily unavailable",
        twin=CHILDREN + "result = attempt(lambda: [fork() for _ in range(10)])",
        removals=(
            Removal("Resource temporarily unavailable", limits=CROWDED),
            Removal("ok", limits=CROWDED, without="rlimits"),
        ),
    ),
    Attempt(
        "14",
        "thread bomb",
        first="pids.max",
        second="RLIMIT_NPROC",
        source=THREADS + "result = attempt(lambda: [start() for _ in range(300)])",
        refused="RuntimeError",
        twin=THREADS + "result = attempt(lambda: [start() for _ in range(32)])",
        removals=(Removal("RuntimeError", limits=CROWDED), Removal("ok", limits=CROWDED, without="rlimits")),
    ),
    Attempt(
        "15",
        "eat the box's memory",
        first="memory cgroup",
        limits=SMALL,
        source=eat(128),
        refused=KILLED,
        outcome="killed: out of memory",
        check=check_out_of_memory,
        twin=eat(16),
        removals=(Removal("ok", without="own_group,join_cgroup", joins=False),),
    ),
    Attempt(
        "17",
        "leave the row of the out-of-memory killer",
        first="landlock",
        second="capabilities",
        source=ADJUST.format(-1000),
        refused="Permission denied",
        twin="result = attempt(lambda: open('/proc/self/oom_score_adj').read())",
        removals=(
            Removal("Permission denied", without="landlock"),
            # Not to -1000: the box's own root may be without CAP_SYS_RESOURCE.
            Removal("ok", without=f"landlock,{RIGHTS}", source=ADJUST.format(0)),
        ),
    ),
    Attempt(
        "19",
        "spin on the processors",
        first="cpu quota",
        limits=SLOW,
        source=spin(0.05),
        refused="ok",
        outcome="throttled",
        check=check_throttled,
        twin="result = 'ok'",
        removals=(Removal("ok", without="own_group,join_cgroup", joins=False, check=check_not_throttled),),
    ),
    Attempt(
        "42",
        "open 2,000 descriptors",
        first="RLIMIT_NOFILE",
        second="memory cgroup",
        source="import os; result = attempt(lambda: [os.dup(1) for _ in range(2000)])",
        refused="Too many open files",
        twin="import os; result = attempt(lambda: [os.dup(1) for _ in range(500)])",
        removals=(Removal("ok", without="rlimits"),),
    ),
    Attempt(
        "43",
        "a memory file of 4 GiB",
        first="RLIMIT_FSIZE",
        second="memory cgroup, as its pages are touched",
        source="import os; result = attempt(lambda: os.ftruncate(os.memfd_create('x'), 4 << 30))",
        refused="File too large",
        twin="import os; result = attempt(lambda: os.ftruncate(os.memfd_create('x'), 16 << 20))",
        removals=(
            Removal("ok", without="rlimits"),
            Removal(KILLED, limits=SMALL, without="rlimits", source=TOUCH, check=check_out_of_memory),
        ),
    ),
    Attempt(
        "54",
        "leave a core of pages that are shared",
        first="RLIMIT_CORE",
        source="""
import os, resource
os.chdir("/tmp")
try:
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))
except ValueError:
    pass
os.abort()
""",
        refused=Ended(6),
        twin="import resource; result = attempt(lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)))",
        removals=(Removal(Ended(6 | 0x80), without="rlimits"),),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)


SIBLING = functools.partial(
    attempt, "16", "eat memory until somebody else is killed", first="memory cgroup of each slot"
)


def eat_beside(house: House, zygote: Zygote, limits: Limits, mib: int) -> tuple[Any, bool]:
    """A slot eats beside a sibling that holds 100 MiB: what came of it, and whether the sibling lives."""
    sibling, guilty = house.spawn(zygote), house.spawn(zygote, limits)
    try:
        assert sibling.run(eat(100)) == "ok"
        outcome = guilty.try_out(eat(mib))
        killed = house.backend.oom_kills(sibling.id)
        if killed:
            wait_until(lambda: sibling.worker not in sibling.backend.procs(sibling.id), "the sibling is gone")
        return outcome, sibling.worker in sibling.backend.procs(sibling.id)
    finally:
        house.end(guilty)
        house.end(sibling)


@SIBLING(part="attack", outcome="only the guilty one is killed")
def test_the_guilty_slot_is_killed_and_no_other(ground: Ground) -> None:
    """A slot at its limit is killed, however much its sibling holds."""
    with ground.zygote().connected() as zygote:
        assert eat_beside(ground.house, zygote, SMALL, 128) == (KILLED, True)


@SIBLING(part="twin", outcome="ok")
def test_within_their_limits_both_live(ground: Ground) -> None:
    """Memory that was promised can be used."""
    with ground.zygote().connected() as zygote:
        assert eat_beside(ground.house, zygote, SMALL, 16) == ("ok", True)


@SIBLING(part="removed", outcome="the sibling is killed")
def test_with_one_limit_for_all_the_biggest_is_killed() -> None:
    """Where slots share a limit the kernel takes whoever holds most, and the guilty one eats on."""
    house = House()
    try:
        places = house.backend.places()
        folder = Path(places.get("memory", places["unified"]))
        name = "memory.limit_in_bytes" if (folder / "memory.limit_in_bytes").exists() else "memory.max"
        (folder / name).write_text(str(160 << 20))
        assert eat_beside(house, house.start_zygote(), LIMITS, 100) == ("ok", False)
    finally:
        house.close()
