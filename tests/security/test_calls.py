"""Attempts through system calls that a worker has no business to make: each ends it, or is refused, or is not there."""

import contextlib
import os
import pty
import signal
from collections.abc import Iterator

from tests_support.attempts import RIGHTS, Attempt, Ended, Props, Removal, make_tests
from tests_support.slots import House

KILLED = Ended.by(signal.SIGSYS)
REFUSED = "Operation not permitted"
ABSENT = "Function not implemented"
#: Without the user namespace, and with the ids of the box's root: for what a mapped id would not even be asked.
KEEP_USERS = "user_namespace,open_sysctl,map_ids,no_nesting"


@contextlib.contextmanager
def put_terminal(_: House) -> Iterator[Props]:
    """An operator's terminal, which by a mistake of ours is open in the worker."""
    ours, theirs = pty.openpty()
    try:
        yield Props(fds=(theirs,))
    finally:
        os.close(ours)
        os.close(theirs)


def by_call(
    number: str, title: str, call: str, twin: str, *removals: Removal, refused: object = KILLED, second: str = ""
) -> Attempt:
    """An attempt that is one system call; its twin is a relative that every program needs."""
    return Attempt(
        number,
        title,
        first="seccomp",
        second=second or "capabilities",
        source=f"import os; result = attempt(lambda: {call})",
        refused=refused,
        twin=f"import os; result = attempt(lambda: {twin})",
        removals=removals,
    )


def machine_code(body: str) -> str:
    """Run these bytes as a function of no arguments."""
    return f"""
import mmap
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(bytes.fromhex("{body}"))
function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
result = "ok" if function() > 0 else "not there"
"""


ATTEMPTS = (
    by_call(
        "29.1", "mount something", 'call("mount", b"none", b"/tmp", b"tmpfs", 0, None)', 'os.mkdir("/tmp/folder")',
        Removal(REFUSED, without="seccomp"), Removal("ok", without=f"seccomp,landlock,{RIGHTS}"),
        second="capabilities, landlock",
    ),
    by_call(
        "29.2", "unmount what covers something", 'call("umount2", b"/proc", 2)', 'os.statvfs("/proc")',
        Removal(REFUSED, without="seccomp"), Removal("ok", without=f"seccomp,landlock,{RIGHTS}"),
        second="capabilities, landlock",
    ),
    by_call(
        "29.3", "a user namespace of its own, with all capabilities", 'call("unshare", 0x10000000)', "os.getuid()",
        Removal("No space left on device", without="seccomp"),
        Removal("ok", without="seccomp,no_nesting,open_sysctl"),
        second="no nesting of user namespaces",
    ),
    by_call(
        "29.4", "join another namespace", 'call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)',
        'os.readlink("/proc/self/ns/net")',
        Removal(REFUSED, without="seccomp"), Removal("ok", without=f"seccomp,landlock,{RIGHTS}"),
    ),
    by_call(
        "29.5", "change the root", 'call("chroot", b"/tmp")', 'os.chdir("/tmp")',
        Removal(REFUSED, without="seccomp"), Removal("ok", without=f"seccomp,{RIGHTS}"),
    ),
    by_call(
        "29.6", "swap the root", 'call("pivot_root", b"/tmp", b"/tmp")', 'os.chdir("/")',
        Removal(REFUSED, without="seccomp"),
        second="capabilities, landlock",
    ),
    Attempt(
        "30",
        "open a file by its number, past every folder",
        first="seccomp",
        second="capabilities",
        source="""
import os, struct
handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
place = ctypes.create_string_buffer(8)
def find():
    call("name_to_handle_at", -100, b"/tmp", handle, place, 0)
def reach():
    find()
    os.close(call("open_by_handle_at", os.open("/tmp", os.O_RDONLY), handle, os.O_RDONLY))
result = attempt(reach)
""",
        refused=KILLED,
        twin="import os; result = attempt(lambda: os.close(os.open('/tmp', os.O_RDONLY)))",
        removals=(Removal(REFUSED, without="seccomp"), Removal("ok", without=f"seccomp,{RIGHTS}")),
    ),
    by_call(
        "31", "a queue of calls that no filter sees (io_uring)",
        'call("io_uring_setup", 1, ctypes.create_string_buffer(120))',
        '__import__("select").epoll().close()',
        Removal("ok", without="seccomp"), refused=ABSENT, second="-",
    ),
    by_call(
        "32.1", "ask the kernel for its programs and maps (bpf)",
        'call("bpf", 0, ctypes.create_string_buffer(bytes([2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1]), 128), 128)',
        "os.getpid()",
        Removal(("ok", REFUSED), without="seccomp"),
        second="kernel.unprivileged_bpf_disabled",
    ),
    by_call(
        "32.2", "the kernel's counters (perf_event_open)",
        'call("perf_event_open", ctypes.create_string_buffer(bytes([1, 0, 0, 0, 112]), 128), 0, -1, -1, 0)',
        "os.times()",
        Removal(("Permission denied", REFUSED), without="seccomp"),
        second="kernel.perf_event_paranoid",
    ),
    by_call(
        "32.3", "catch page faults (userfaultfd)", 'call("userfaultfd", 0)', '__import__("mmap").mmap(-1, 4096)',
        Removal(REFUSED, without="seccomp"), refused=ABSENT,
    ),
    by_call(
        "32.4", "a key in the kernel (add_key)",
        'call("add_key", b"user", b"bedsit", b"x", 1, -2)', "os.urandom(8)",
        Removal("ok", without="seccomp"),
        second="own session keyring",
    ),
    by_call(
        "32.5", "load a kernel module", 'call("init_module", b"x", 1, b"")', "os.uname()",
        Removal((REFUSED, ABSENT), without="seccomp"),
    ),
    by_call(
        "32.6", "load another kernel", 'call("kexec_load", 0, 0, None, 0)', "os.uname()",
        Removal((REFUSED, ABSENT), without="seccomp"),
    ),
    Attempt(
        "33.1",
        "a system call of the x32 architecture",
        first="seccomp",
        second="a kernel without x32",
        machines=("x86_64",),
        source="result = attempt(lambda: call(0x40000000 | 39))",
        refused=KILLED,
        twin="result = attempt(lambda: call(39))",
        removals=(Removal(ABSENT, without="seccomp"),),
    ),
    Attempt(
        "33.2",
        "a system call of the i386 architecture (int 0x80)",
        first="seccomp",
        machines=("x86_64",),
        source=machine_code("b814000000cd80c3"),  # mov eax, 20 (getpid); int 0x80; ret
        refused=KILLED,
        twin=machine_code("b8270000000f05c3"),  # mov eax, 39 (getpid); syscall; ret
        removals=(Removal("ok", without="seccomp"),),
    ),
    by_call(
        "39.1", "become root", "os.setuid(0)", "os.getuid()",
        Removal("Invalid argument", without="seccomp"),
        Removal(REFUSED, without=f"seccomp,{KEEP_USERS}"),
        Removal("ok", without=f"seccomp,{RIGHTS}"),
        refused=REFUSED, second="user namespace, own ids",
    ),
    Attempt(
        "39.2",
        "raise its own limits",
        first="hard limits",
        second="user namespace",
        source="import resource; result = attempt(lambda: resource.setrlimit(7, (1100, 1100)))",
        refused="ValueError",
        twin="import resource; result = attempt(lambda: resource.setrlimit(7, (64, 64)))",
        removals=(Removal("ok", without="rlimits"),),
    ),
    by_call(
        "39.3", "go before all others (nice -20)", "os.setpriority(os.PRIO_PROCESS, 0, -20)",
        "os.getpriority(os.PRIO_PROCESS, 0)",
        Removal("Permission denied", without="seccomp"),
        Removal("ok", without=f"seccomp,{RIGHTS}"),
        refused=REFUSED,
    ),
    by_call(
        "39.4", "real-time scheduling", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
        "os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))",
        Removal(REFUSED, without="seccomp"),
        refused=REFUSED,
    ),
    by_call(
        "39.5", "keep all its memory in RAM (mlockall)", 'call("mlockall", 3)', "__import__('mmap').mmap(-1, 4096)",
        Removal("Cannot allocate memory", without="seccomp"),
        Removal("ok", without=f"seccomp,rlimits,{RIGHTS}"),
        refused=REFUSED, second="RLIMIT_MEMLOCK",
    ),
    by_call(
        "40", "change the limits of its init", "__import__('resource').prlimit(1, 7, (8, 8))",
        "__import__('resource').prlimit(0, 7)",
        Removal(REFUSED, without="seccomp"),
        Removal("ok", without=f"seccomp,{RIGHTS}"),
        refused=REFUSED, second="users",
    ),
    Attempt(
        "41",
        "type into the operator's terminal (TIOCSTI)",
        first="seccomp",
        second="it is not the worker's own terminal; capabilities",
        stage=put_terminal,
        source="import fcntl; result = attempt(lambda: fcntl.ioctl(fds[0], 0x5412, b'x'))",
        refused=REFUSED,
        twin="import os; result = attempt(lambda: os.isatty(fds[0]))",
        removals=(
            Removal(REFUSED, without="seccomp"),
            Removal("ok", without=f"seccomp,landlock,{RIGHTS}"),
        ),
    ),
    by_call(
        "55", "set the box's clock", 'call("clock_settime", 0, ctypes.create_string_buffer(16))',
        "__import__('time').time()",
        Removal(REFUSED, without="seccomp"),
        refused=REFUSED,
    ),
)  # fmt: skip

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
