"""Attempts on its own process: to outlive its init, to look like something else, to be another kind of process."""

from bedsit.sandbox.jail import libc
from tests_support.attempts import RIGHTS, Attempt, Removal, make_tests

REFUSED = "Operation not permitted"
PRCTL = "result = every([attempt(lambda a=a: call('prctl', *a)) for a in {!r}])"
NAME = "result = attempt(lambda: call('prctl', 15, b'model'))"
#: PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE
OUTLIVE = ((1, 0, 0, 0, 0), (36, 1, 0, 0, 0))
HIDE = ((4, 0, 0, 0, 0),)
#: PR_SET_MM to an address where nothing is: PR_SET_MM_ARG_START, PR_SET_MM_EXE_FILE
MOVE = ((35, 8, 0x1000, 0, 0), (35, 13, 0, 0, 0))
#: PR_SET_KEEPCAPS, PR_SET_SECUREBITS, PR_CAP_AMBIENT raise
POWER = ((8, 1, 0, 0, 0), (28, 0, 0, 0, 0), (47, 2, 21, 0, 0))
#: PR_SET_PTRACER any, PR_SET_TSC, PR_SET_TIMERSLACK, PR_SET_THP_DISABLE, PR_SET_SPECULATION_CTRL, PR_SET_IO_FLUSHER,
#: PR_SET_SYSCALL_USER_DISPATCH off, PR_SET_MEMORY_MERGE, PR_SCHED_CORE
KINDS = (
    *((0x59616D61, -1, 0, 0, 0), (26, 1, 0, 0, 0), (29, 1, 0, 0, 0), (41, 1, 0, 0, 0), (53, 0, 2, 0, 0)),
    *((57, 1, 0, 0, 0), (59, 0, 0, 0, 0), (67, 1, 0, 0, 0), (62, 1, 0, 0, 0)),
)
GROUP = "import os; result = every([attempt(lambda: os.setpgid(0, 0)), attempt(os.setsid)])"
FILTER = """
import ctypes, struct
code = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", 1, ctypes.addressof(code)))
# SECCOMP_SET_MODE_FILTER
result = attempt(lambda: call({}[platform.machine()], 1, 0, program))
"""
SECCOMP = {"x86_64": 317, "aarch64": 277}
QUEUE = """
import ctypes, os, struct
info = ctypes.create_string_buffer(struct.pack("=iiixxxxiiQ", {signal}, 0, -1, os.getpid(), os.getuid(), 7).ljust(128))
result = attempt(lambda: call({number}[platform.machine()], {target}, {signal}, info))
"""

ATTEMPTS = (
    Attempt(
        "151",
        "outlive its init: no signal at its end, orphans to itself (PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER)",
        first="seccomp",
        second="PID namespace: all end with pid 1",
        source=PRCTL.format(OUTLIVE),
        refused=REFUSED,
        twin=NAME,
        removals=(Removal("ok", without="seccomp"),),
    ),
    Attempt(
        "152",
        "hide from whoever looks from outside (PR_SET_DUMPABLE)",
        first="seccomp",
        second="root sees all the same",
        source=PRCTL.format(HIDE),
        refused=REFUSED,
        twin="result = call('prctl', 3)",
        allowed=1,
        removals=(
            Removal(
                "ok",
                without="seccomp",
                check=lambda slot, _: _assert_on(slot.walls(blank=False)),
            ),
        ),
    ),
    Attempt(
        "153",
        "move its own command line and program (PR_SET_MM)",
        first="seccomp",
        second="capabilities",
        source=PRCTL.format(MOVE),
        refused=REFUSED,
        twin=NAME,
        removals=(Removal(REFUSED, without="seccomp"),),
    ),
    Attempt(
        "154",
        "keep or raise capabilities (PR_SET_KEEPCAPS, PR_SET_SECUREBITS, PR_CAP_AMBIENT)",
        first="seccomp",
        second="locked securebits, no capability",
        source=PRCTL.format(POWER),
        refused=REFUSED,
        twin="result = call('prctl', 23, 21)",
        allowed=0,
        removals=(Removal(REFUSED, without="seccomp"),),
    ),
    Attempt(
        "155",
        "be another kind of process: traced by all, merged memory, no clock, speculation, own system calls",
        first="seccomp",
        source=PRCTL.format(KINDS),
        refused=REFUSED,
        twin=NAME,
        removals=(Removal("ok", without="seccomp", source=PRCTL.format(KINDS[1:4])),),
    ),
    Attempt(
        "156",
        "another address layout, readable means executable (personality)",
        first="seccomp",
        source="result = attempt(lambda: call('personality', 0x0440000))",
        refused=REFUSED,
        twin="import mmap; result = attempt(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))",
        removals=(Removal("ok", without="seccomp"),),
    ),
    Attempt(
        "157",
        "a filter of its own above ours (seccomp)",
        first="seccomp",
        second="filters only ever narrow",
        source=FILTER.format(SECCOMP),
        refused=REFUSED,
        twin="result = [line.split()[1] for line in open('/proc/self/status') if line.startswith('Seccomp:')]",
        allowed=["2"],
        removals=(Removal("ok", without="seccomp"),),
    ),
    Attempt(
        "158",
        "a session or process group of its own",
        first="seccomp",
        second="PID namespace",
        source=GROUP,
        refused="Function not implemented",
        twin="import os; result = attempt(lambda: os.getpgid(0))",
        removals=(Removal(["ok", REFUSED], without="seccomp"),),
    ),
    Attempt(
        "159",
        "signal its process group, which it was born into",
        first="own session",
        second="users, landlock",
        source="""
import os, signal
signal.signal(15, signal.SIG_IGN)
result = [os.getpgrp(), attempt(lambda: os.kill(0, 15))]
""",
        refused=[1, "ok"],
        outcome="the group is its own slot; its init is not reached",
        check=lambda slot, _: _assert_alive(slot.pid),
        twin="import os, signal; signal.signal(15, signal.SIG_IGN); result = attempt(lambda: os.kill(os.getpid(), 15))",
        # Its group is then the zygote's, whose number has no meaning here; other users' processes stay out of reach.
        removals=(Removal([0, "ok"], without="own_session", check=lambda slot, _: _assert_alive(slot.pid)),),
    ),
    Attempt(
        "160",
        "queue a signal to its init with a forged sender (rt_sigqueueinfo)",
        first="seccomp",
        second="users, landlock",
        source=QUEUE.format(number={"x86_64": 129, "aarch64": 138}, target=1, signal=34),
        refused="Function not implemented",
        twin="import os, signal; signal.signal(34, print); result = attempt(lambda: os.kill(os.getpid(), 34))",
        removals=(Removal(REFUSED, without="seccomp"), Removal(REFUSED, without="seccomp,landlock")),
    ),
    Attempt(
        "161",
        "stop its init, or its init's first thread (SIGSTOP, tgkill)",
        first="users",
        second="landlock; pid 1 gets no signal from inside",
        source="""
import os, signal
result = every([
    attempt(lambda: os.kill(1, signal.SIGSTOP)),
    attempt(lambda: call({"x86_64": 234, "aarch64": 131}[platform.machine()], 1, 1, int(signal.SIGSTOP))),
])
""",
        refused=REFUSED,
        twin="import os, signal; result = attempt(lambda: signal.pthread_kill(__import__('threading').get_ident(), 0))",
        removals=(
            # Landlock keeps signals in their scope from its sixth version on (Linux 6.12).
            Removal(REFUSED if libc.landlock_abi() >= 6 else "ok", without=RIGHTS),
            Removal("ok", without=f"landlock,{RIGHTS}", check=lambda slot, _: _assert_alive(slot.pid)),
        ),
    ),
    Attempt(
        "162",
        "type into a terminal, take one (TIOCSTI, TIOCLINUX, TIOCSCTTY, TIOCSPGRP)",
        first="seccomp",
        second="no terminal",
        source="""
import fcntl
result = every([attempt(lambda r=r: fcntl.ioctl(0, r, b"x" * 8)) for r in (0x5412, 0x541C, 0x540E, 0x5410)])
""",
        refused=REFUSED,
        twin="import os; result = os.isatty(0)",
        allowed=False,
        removals=(Removal("Inappropriate ioctl for device", without="seccomp"),),
    ),
)


def _assert_on(walls: dict[str, str]) -> None:
    assert {name for name, state in walls.items() if state != "on"} <= {"seccomp", "landlock"}


def _assert_alive(pid: int) -> None:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        assert file.read().rpartition(")")[2].split()[0] in "SR"


test_attack, test_twin, test_without = make_tests(ATTEMPTS)
