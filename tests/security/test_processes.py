"""Attempts on processes: kill, trace or read others', outlive one's own end, refuse to end."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from bedsit.sandbox.jail import libc
from bedsit.supervisor.causes import classify
from tests_support.attempts import RIGHTS, Attempt, Ended, Limits, Props, Removal, attempt, make_tests
from tests_support.slots import House, Slot, wait_until

REFUSED = "Operation not permitted"
KILLED = Ended.by(signal.SIGSYS)
SMALL = Limits(memory_bytes=64 << 20, pids_max=32, cpus=1.0)


@contextlib.contextmanager
def start_sentinel(_: House) -> Iterator[Props]:
    """A process of the box's that an attempt may aim at; it is asked for signal 0 only."""
    process = subprocess.Popen([sys.executable, "-I", "-c", "import signal; signal.pause()"], env={})
    try:
        yield Props({"sentinel": process.pid})
    finally:
        process.kill()
        process.wait()


ORPHANS = """
import os
def leave_orphan():
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
"""
AIM = """
import os
result = every([attempt(lambda pid=pid: os.kill(pid, 0)) for pid in {}])
"""

ATTEMPTS = (
    Attempt(
        "22",
        "leave zombies until no process is left",
        first="init reaps",
        second="pids.max",
        limits=SMALL,
        profile="subprocess",
        source=ORPHANS + "result = attempt(lambda: [leave_orphan() for _ in range(100)])",
        refused="ok",
        outcome="all are buried",
        twin=ORPHANS + "leave_orphan(); result = 'ok'",
        removals=(Removal("Resource temporarily unavailable", bad="no_trace:no_reaping"),),
    ),
    Attempt(
        "23.1",
        "kill a process of the box's, or all",
        first="PID namespace",
        second="users, landlock",
        stage=start_sentinel,
        source=AIM.format("(sentinel, -1)"),
        refused="No such process",
        twin=AIM.format("(os.getpid(),)"),
        removals=(
            Removal(REFUSED, without="pid_namespace", source=AIM.format("(sentinel,)")),
            Removal(
                REFUSED if libc.landlock_abi() >= 6 else "ok",
                without=f"pid_namespace,{RIGHTS}",
                source=AIM.format("(sentinel,)"),
            ),
            Removal("ok", without=f"pid_namespace,landlock,{RIGHTS}", source=AIM.format("(sentinel,)")),
        ),
    ),
    Attempt(
        "23.2",
        "kill its init",
        first="users",
        second="landlock; pid 1 gets no signal from inside",
        source=AIM.format("(1,)"),
        refused=REFUSED,
        twin=AIM.format("(os.getpid(),)"),
        removals=(
            # Landlock keeps signals in their scope from its sixth version on (Linux 6.12).
            Removal(REFUSED if libc.landlock_abi() >= 6 else "ok", without=RIGHTS),
            Removal("ok", without=f"landlock,{RIGHTS}"),
            Removal(
                "alive",
                without=f"landlock,{RIGHTS}",
                source="import os; os.kill(1, 9); result = 'alive'",
                check=lambda slot, _: os.kill(slot.pid, 0),
            ),
        ),
    ),
    Attempt(
        "24.1",
        "trace its init",
        first="seccomp",
        second="users, landlock",
        source="result = attempt(lambda: call('ptrace', 0x4206, 1, 0, 0))",
        refused=KILLED,
        twin="import os; result = attempt(lambda: open(f'/proc/self/task/{os.getpid()}/status').read())",
        removals=(
            Removal(REFUSED, without="seccomp"),
            Removal(REFUSED, without=f"seccomp,{RIGHTS}"),
            Removal("ok", without=f"seccomp,landlock,{RIGHTS}"),
        ),
    ),
    Attempt(
        "24.2",
        "read its init's memory",
        first="seccomp",
        second="users, landlock",
        source=(
            READ := """
import os
buffer = ctypes.create_string_buffer(8)
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
def read(pid):
    piece = Piece(ctypes.addressof(buffer), 8)  # a fork of the same process: the address is mapped there too
    call("process_vm_readv", pid, ctypes.byref(piece), 1, ctypes.byref(piece), 1, 0)
"""
        )
        + "result = attempt(lambda: read(1))",
        refused=KILLED,
        twin="import os; result = attempt(lambda: os.pread(os.open('/proc/self/mem', os.O_RDONLY), 8, id(os)))",
        removals=(
            Removal(REFUSED, without="seccomp"),
            Removal(REFUSED, without=f"seccomp,{RIGHTS}"),
            Removal(("ok", "Bad address"), without=f"seccomp,landlock,{RIGHTS}"),
        ),
    ),
    Attempt(
        "24.3",
        "take a descriptor of its init's",
        first="seccomp",
        second="users, landlock",
        source="""
def take():
    try:
        pidfd = call("pidfd_open", 1, 0)
    except OSError:  # on no list: refused, but not deadly
        pidfd = -1
    call("pidfd_getfd", pidfd, 0, 0)
result = attempt(take)
""",
        refused=KILLED,
        twin="import os; result = attempt(lambda: os.dup(0))",
        removals=(
            Removal(REFUSED, without="seccomp"),
            Removal("ok", without=f"seccomp,landlock,{RIGHTS}"),
        ),
    ),
    Attempt(
        "24.4",
        "open its init's memory as a file",
        first="hidden /proc",
        second="users, landlock",
        source="result = attempt(lambda: open('/proc/1/mem', 'rb'))",
        refused="No such file or directory",
        twin="result = attempt(lambda: open('/proc/self/mem', 'rb'))",
        removals=(
            Removal("Permission denied", bad="proc"),
            Removal("ok", bad="proc", without=f"landlock,{RIGHTS}"),
        ),
    ),
    Attempt(
        "25",
        "see others, read the kernel's addresses and command line",
        first="hidden /proc",
        second="users",
        source="""
import os
others = [name for name in os.listdir("/proc") if name.isdigit() and name != str(os.getpid())]
paths = ("/proc/1/environ", "/proc/kallsyms", "/proc/cmdline")
result = ["others" if others else "nobody", every([attempt(lambda path=path: open(path).read()) for path in paths])]
""",
        refused=["nobody", "No such file or directory"],
        twin="result = attempt(lambda: open('/proc/self/environ').read())",
        removals=(Removal(["others", ["Permission denied", "ok", "ok"]], bad="proc"),),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)

EAT = "kept = [b'x' * (1 << 20) for _ in range(128)]"
DIE = "import os; os.kill(os.getpid(), 9)"
STAY = """
import os, signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
os.write(fds[0], b"x")
while True:
    pass
"""
DAEMON = """
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(fds[0], b"x")
        signal.pause()
    os._exit(0)
os.wait()
os._exit(0)
"""


def end_and_judge(ground: Any, source: str) -> tuple[Ended, str]:
    """How the worker ended, and what the daemon makes of it."""
    with ground.slot(limits=SMALL) as slot:
        ended = slot.try_out(source)
        assert isinstance(ended, Ended)
        return ended, classify(ended.status, slot.backend.oom_kills(slot.id), 0, SMALL.memory_bytes, 32).kind


LIE = functools.partial(
    attempt, "18", "kill itself to look like out of memory", first="the kernel's counter, not the signal"
)


@LIE(part="attack", outcome="cause: signal")
def test_a_suicide_is_no_lack_of_memory(ground: Any) -> None:
    """The cause of a SIGKILL that the slot sent itself is a signal."""
    assert end_and_judge(ground, DIE) == (Ended(9), "signal")


@LIE(part="twin", outcome="cause: oom")
def test_a_lack_of_memory_is_one(ground: Any) -> None:
    """The cause of the kernel's SIGKILL is the lack of memory."""
    assert end_and_judge(ground, EAT) == (Ended(9), "oom")


@LIE(part="removed", outcome="both ended by SIGKILL")
def test_by_the_signal_alone_both_are_the_same(ground: Any) -> None:
    """A judge who looked at the wait status alone would believe it."""
    assert end_and_judge(ground, DIE)[0] == end_and_judge(ground, EAT)[0]


HANG = functools.partial(attempt, "20", "ignore every signal and spin", first="cgroup.kill")


def start_to_stay(slot: Slot) -> None:
    """Assign what will not end, and wait until it has begun."""
    read, write = os.pipe()
    with slot.connect() as sock:
        slot.assign(sock, STAY, (write,))
        os.close(write)
        assert os.read(read, 1) == b"x"
    os.close(read)


@HANG(part="attack", outcome="gone")
def test_what_ignores_all_signals_is_ended(ground: Any) -> None:
    """The daemon's kill leaves nobody, although the worker hears no signal."""
    with ground.slot() as slot:
        start_to_stay(slot)
        slot.kill()
        assert slot.backend.procs(slot.id) == []


@HANG(part="twin", outcome="gone")
def test_what_does_as_it_is_told_is_ended_too(ground: Any) -> None:
    """A worker that idles ends by the signal that the other one ignores."""
    with ground.slot() as slot:
        os.kill(slot.worker, signal.SIGTERM)
        wait_until(lambda: slot.worker not in slot.backend.procs(slot.id), "the worker is gone")


@HANG(part="removed", outcome="alive")
def test_a_polite_end_would_not_do(ground: Any) -> None:
    """SIGTERM, SIGINT, SIGHUP to the worker: it goes on."""
    with ground.slot() as slot:
        start_to_stay(slot)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(slot.worker, number)
        before = slot.backend.stats(slot.id).cpu_usage_s
        wait_until(lambda: slot.backend.stats(slot.id).cpu_usage_s > before + 0.02, "it goes on spinning")


GRANDCHILD = functools.partial(
    attempt, "21", "leave a grandchild that outlives the slot", first="PID namespace", second="cgroup.kill"
)


def leave_grandchild(slot: Slot) -> None:
    """The worker ends and leaves a process in a session of its own."""
    read, write = os.pipe()
    assert slot.try_out(DAEMON, (write,)) == Ended(0)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    assert len(slot.backend.procs(slot.id)) == 2  # init and the grandchild


@GRANDCHILD(part="attack", outcome="gone")
def test_a_grandchild_ends_with_its_init(ground: Any) -> None:
    """When init is gone, so is everybody, whatever session or parent they chose."""
    with ground.slot(profile="subprocess") as slot:
        leave_grandchild(slot)
        os.kill(slot.pid, signal.SIGKILL)
        wait_until(lambda: not slot.backend.populated(slot.id), "nobody is left")


@GRANDCHILD(part="twin", outcome="ok")
def test_a_child_that_is_waited_for_harms_nobody(ground: Any) -> None:
    """Children are what this profile is for."""
    source = "import os\nif os.fork() == 0:\n    os._exit(0)\nos.wait()\nresult = 'ok'"
    with ground.slot(profile="subprocess") as slot:
        assert slot.run(source) == "ok"


@GRANDCHILD(part="removed", outcome="alive after init; gone by cgroup.kill")
def test_without_its_namespace_a_grandchild_stays(ground: Any) -> None:
    """Init's end is then nobody else's; the group's is."""
    with ground.slot("--without", "pid_namespace,self_check", profile="subprocess") as slot:
        leave_grandchild(slot)
        os.kill(slot.pid, signal.SIGKILL)
        wait_until(lambda: slot.pid not in slot.backend.procs(slot.id), "init is gone")
        assert slot.backend.populated(slot.id)
        slot.kill()
        assert not slot.backend.populated(slot.id)
