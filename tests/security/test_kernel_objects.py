"""Attempts to use up, or learn from, what the kernel keeps for all: timers, pipes, sockets, watches, leases, locks."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL, SIGSYS

from tests_support.attempts import LIMITS, RIGHTS, Attempt, Ended, Limits, Props, Removal, make_tests
from tests_support.slots import House, Slot

REFUSED = "Operation not permitted"
UNKNOWN = "Function not implemented"
SMALL = Limits(memory_bytes=96 << 20, pids_max=64, cpus=1.0)
KILLED = Ended.by(SIGKILL)

TIMERS = """
import ctypes
make = {"x86_64": 222, "aarch64": 107}[platform.machine()]
number = ctypes.c_int()
result = attempt(lambda: [call(make, 1, None, ctypes.byref(number)) for _ in range(%d)])
"""
PIPES = """
import fcntl, os
def widen(count):
    for _ in range(count):
        fcntl.fcntl(os.pipe()[0], fcntl.F_SETPIPE_SZ, 1 << 20)
result = attempt(lambda: widen(%d))
"""
FILL = """
import socket
kept = []
def fill(count):
    for _ in range(count):
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        kept.append(pair)
        for sock in pair:
            sock.setblocking(False)
            try:
                while True:
                    sock.send(bytes(32 << 10))
            except BlockingIOError:
                pass
result = attempt(lambda: fill(%d))
"""
WATCH = """
import os
watch = {"x86_64": (294, 254), "aarch64": (26, 27)}[platform.machine()]
def spy():
    fd = call(watch[0], 0)
    call(watch[1], fd, os.__file__.encode(), 0x20)
result = attempt(spy)
"""
NOTICE = "import fcntl, os; result = attempt(lambda: fcntl.fcntl(os.open('/usr/lib', os.O_RDONLY), fcntl.F_NOTIFY, 1))"
LEASE = "import fcntl; result = attempt(lambda: fcntl.fcntl(fds[0], fcntl.F_SETLEASE, fcntl.F_RDLCK))"
FANOTIFY = "result = attempt(lambda: call({'x86_64': 300, 'aarch64': 262}[platform.machine()], 0, 0))"
UNLISTED = "result = every([attempt(lambda n=n: call(n)) for n in range(%d, %d)])"
KEYS = """
import ctypes
def leave():
    # KEYCTL_SEARCH in the session's keyring, for what whoever started the box may hold there
    call("keyctl", 10, -3, b"user", b"bedsit-test", 0)
result = attempt(leave)
"""


@contextlib.contextmanager
def put_artifact(house: House) -> Iterator[Props]:
    """A file of root's that slots have open, and that root's own programs open again."""
    path = house.folder / "artifact"
    path.write_bytes(b"weights")
    path.chmod(0o400)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield Props({"path": str(path)}, (fd,))
    finally:
        os.close(fd)
        path.unlink()


def check_root_opens(_: Slot, props: Props) -> None:
    """Root opens it at once, for writing too: nobody is asked to give up a lease first."""
    os.close(os.open(props.values["path"], os.O_RDWR | os.O_NONBLOCK))


def check_root_waits(_: Slot, props: Props) -> None:
    """Root would have to wait until the lease is given up."""
    with contextlib.suppress(BlockingIOError):
        os.close(os.open(props.values["path"], os.O_RDWR | os.O_NONBLOCK))
        raise AssertionError("nobody had a lease")


@contextlib.contextmanager
def put_lock(house: House) -> Iterator[Props]:
    """The lock that keeps a second daemon away, where every user may open it."""
    path = Path(house.folder, "daemon.lock")
    path.touch(0o666)
    path.chmod(0o666)
    house.folder.chmod(0o755)
    try:
        yield Props({"path": str(path)})
    finally:
        house.folder.chmod(0o700)
        path.unlink()


def check_lock_is_free(_: Slot, props: Props) -> None:
    """A daemon can take it."""
    with Path(props.values["path"]).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_few_news(slot: Slot, _: Props) -> None:
    """The daemon hears of 64 calls at most, each once."""
    assert 10 < len(slot.refused) <= 64
    assert len(set(slot.refused)) == len(slot.refused)


def check_no_listener(_: Slot, __: Props) -> None:
    """The name on the box means nobody."""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(ConnectionRefusedError):
        sock.connect("\0bedsit-test-router")
        raise AssertionError("a worker answers under a name of the box's")


def check_listener(_: Slot, __: Props) -> None:
    """Whoever looks for that name on the box finds the worker."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0bedsit-test-router")


ATTEMPTS = (
    Attempt(
        "181",
        "make timers without end",
        first="seccomp",
        second="RLIMIT_SIGPENDING",
        source=TIMERS % 1000,
        refused="Function not implemented",
        twin="import signal; result = attempt(lambda: signal.setitimer(signal.ITIMER_REAL, 60))",
        removals=(
            Removal("Resource temporarily unavailable", without="seccomp"),
            Removal("ok", without="seccomp,rlimits"),
        ),
    ),
    Attempt(
        "182",
        "widen pipes without end",
        first="the kernel's bound of pipe pages for each user",
        second="memory cgroup",
        source=PIPES % 200,
        refused=REFUSED,
        twin=PIPES % 10,
        removals=(Removal("ok", without=f"landlock,{RIGHTS}"),),
    ),
    Attempt(
        "183",
        "hide memory in the buffers of sockets that nobody reads",
        first="memory cgroup",
        second="RLIMIT_NOFILE",
        limits=SMALL,
        source=FILL % 480,
        refused=KILLED,
        outcome="killed: out of memory",
        twin=FILL % 10,
        removals=(Removal("ok", limits=LIMITS),),
    ),
    Attempt(
        "184",
        "watch who opens the files that all slots share (inotify)",
        first="seccomp",
        source=WATCH,
        refused=UNKNOWN,
        twin="import os; result = attempt(lambda: os.stat(os.__file__))",
        removals=(Removal("ok", without="seccomp"),),
    ),
    Attempt(
        "185",
        "be told who reads in a folder that all slots share (F_NOTIFY)",
        first="seccomp",
        source=NOTICE,
        refused=REFUSED,
        twin="import fcntl; result = attempt(lambda: fcntl.fcntl(1, fcntl.F_GETFL))",
        removals=(Removal("ok", without="seccomp"),),
    ),
    Attempt(
        "186",
        "make root wait: a lease on a file that slots share",
        first="seccomp",
        second="users: only its owner",
        stage=put_artifact,
        source=LEASE,
        refused=REFUSED,
        check=check_root_opens,
        twin="import fcntl; result = attempt(lambda: fcntl.fcntl(fds[0], fcntl.F_GETFD))",
        removals=(
            Removal("Permission denied", without="seccomp", check=check_root_opens),
            Removal("ok", without=f"seccomp,landlock,{RIGHTS}", check=check_root_waits),
        ),
    ),
    Attempt(
        "187",
        "hold the lock that a daemon needs",
        first="own root",
        second="landlock; the file's mode",
        stage=put_lock,
        source="""
import fcntl, os
lock = lambda: fcntl.flock(os.open(path if os.path.exists(path) else "/box" + path, os.O_RDONLY), fcntl.LOCK_EX)
result = attempt(lock)
""",
        refused="No such file or directory",
        check=check_lock_is_free,
        twin="import fcntl; result = attempt(lambda: fcntl.flock(open('/tmp/mine', 'w'), fcntl.LOCK_EX))",
        removals=(
            Removal("Permission denied", bad="pivot:box_kept", check=check_lock_is_free),
            Removal("ok", bad="pivot:box_kept", without="landlock"),
        ),
    ),
    Attempt(
        "188",
        "watch whole file systems (fanotify)",
        first="seccomp",
        second="capabilities",
        source=FANOTIFY,
        refused=UNKNOWN,
        twin="import os; result = attempt(lambda: os.statvfs('/usr'))",
        removals=(Removal(REFUSED, without="seccomp"),),
    ),
    Attempt(
        "189",
        "try system calls that no list knows, to fill the daemon's events",
        first="each number is told once, 64 at most",
        source=UNLISTED % (1000, 1400),
        refused=UNKNOWN,
        check=check_few_news,
        twin="import os; result = attempt(os.getpid)",
        removals=(Removal(UNKNOWN, without="seccomp"),),
    ),
    Attempt(
        "190",
        "look for keys of whoever started the box",
        first="seccomp",
        second="a keyring of its own",
        source=KEYS,
        refused=Ended.by(SIGSYS),
        twin="import os; result = attempt(lambda: os.getrandom(16))",
        removals=(Removal("Required key not available", without="seccomp"),),
    ),
    Attempt(
        "191",
        "answer under an abstract name that a program of the box's looks for",
        first="network namespace",
        source="""
import socket
listener = socket.socket(socket.AF_UNIX)
def listen():
    listener.bind("\\0bedsit-test-router")
    listener.listen(1)
result = attempt(listen)
""",
        refused="ok",
        outcome="only the slot itself sees the name",
        check=check_no_listener,
        twin="import socket; ours, theirs = socket.socketpair(); result = attempt(lambda: ours.send(b'x'))",
        removals=(Removal("ok", without="network_namespace", check=check_listener),),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
