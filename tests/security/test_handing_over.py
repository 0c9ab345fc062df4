"""Attempts with what travels beside a packet: descriptors to those who ask for none, forged credentials, folders."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tests_support.attempts import RIGHTS, Attempt, Props, Removal, make_tests
from tests_support.slots import House, Slot

REFUSED = "Operation not permitted"
NOT_HERE = "No such file or directory"


def kernel_refuses_descriptors() -> bool:
    """Whether a socket can be closed to descriptors (SO_PASSRIGHTS, kernel 6.16)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, contextlib.suppress(OSError):
        ours.setsockopt(socket.SOL_SOCKET, 83, 0)
        return True
    return False


#: At the sender. An older kernel lets the packet go and drops the descriptors on the other side.
SENT = REFUSED if kernel_refuses_descriptors() else "ok"

SEND = """
import array, os, socket
reader, writer = os.pipe()
def send(sock, count):
    sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer] * count))])
"""
FORGE = """
import os, socket, struct
link = socket.socket(fileno=fds[0])
def forge(pid, uid):
    link.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("3i", pid, uid, uid))])
"""
WALK = """
import os
def walk():
    for fd in range(64):
        try:
            found = os.open("etc/hostname", os.O_RDONLY, dir_fd=fd)
        except (NotADirectoryError, FileNotFoundError):
            continue
        except OSError as e:
            if e.errno == 9:  # not open
                continue
            raise
        return "walked out"
    return "no folder"
try:
    result = walk()
except OSError as e:
    result = os.strerror(e.errno)
"""


def count_descriptors(pid: int) -> int:
    """How many descriptors a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def check_init_holds_few(slot: Slot, _: Props) -> None:
    """Init has what it was born with and the test's connection: nothing came in."""
    assert count_descriptors(slot.pid) <= 16


@contextlib.contextmanager
def put_server(house: House) -> Iterator[Props]:
    """A connection to a process of the box's that asks for no descriptor, as the router is for a worker."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(OSError):
        ours.setsockopt(socket.SOL_SOCKET, 83, 0)
    with ours, theirs:
        yield Props({}, (theirs.fileno(),))
        with contextlib.suppress(BlockingIOError):  # not every attempt got something through
            ours.recv(16, socket.MSG_DONTWAIT)  # what is not asked for is dropped by the kernel


def find_sockets(pid: int) -> list[str]:
    """The sockets among a process's descriptors."""
    links = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return [link for link in links if link.startswith("socket:")]


ATTEMPTS = (
    Attempt(
        "171",
        "hand its init descriptors, 253 at a time",
        first="init's socket is closed to them (kernel 6.16)",
        second="init asks for none",
        source=SEND + "result = every([attempt(lambda: send(control, 253)) for _ in range(4)])",
        refused=SENT,
        check=check_init_holds_few,
        twin="control.send(b'\"just bytes\"')",
        allowed="just bytes",
        removals=(Removal("ok", without="seccomp", check=check_init_holds_few),),
    ),
    Attempt(
        "172",
        "hand the router a descriptor that takes long to close",
        first="the router's sockets are closed to them (kernel 6.16)",
        second="the router asks for none",
        stage=put_server,
        source=SEND
        + """
link = socket.socket(fileno=fds[0])
memory = os.memfd_create("big")
os.truncate(memory, 64 << 20)
writer = memory
result = attempt(lambda: send(link, 1))
""",
        refused=SENT,
        twin="import socket; result = attempt(lambda: socket.socket(fileno=fds[0]).send(b'x'))",
        removals=(
            Removal(
                "ok",
                source=SEND + "ours, theirs = socket.socketpair(1, 5); result = attempt(lambda: send(theirs, 1))",
            ),
        ),
    ),
    Attempt(
        "173",
        "say that it is pid 1, or root (SCM_CREDENTIALS)",
        first="the kernel checks",
        second="nobody believes a sender: sockets are the identity",
        stage=put_server,
        source=FORGE
        + "result = every([attempt(lambda: forge(1, os.getuid())), attempt(lambda: forge(os.getpid(), 0))])",
        refused=[REFUSED, "Invalid argument"],
        twin=FORGE + "result = attempt(lambda: forge(os.getpid(), os.getuid()))",
        removals=(Removal("ok", without=f"landlock,{RIGHTS}"),),
    ),
    Attempt(
        "174",
        "hide thousands of descriptors in flight, in circles that nobody reads",
        first="RLIMIT_NOFILE counts those in flight",
        second="the kernel collects circles",
        source=SEND
        + """
def hide(rounds):
    kept = []
    for _ in range(rounds):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock, other in ((ours, theirs), (theirs, ours)):
            rights = array.array("i", [ours.fileno(), theirs.fileno()] * 126)
            sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_DONTWAIT)
        ours.close(), theirs.close()
result = attempt(lambda: hide(200))
""",
        refused="Too many references: cannot splice",
        twin=SEND + "ours, theirs = socket.socketpair(); send(ours, 200); result = 'ok'",
        removals=(Removal("ok", without="rlimits"),),
    ),
    Attempt(
        "175",
        "walk out of its root by a folder that somebody left open",
        first="every descriptor closed",
        second="landlock",
        source=WALK,
        refused="no folder",
        twin="import os; result = attempt(lambda: os.open('passwd', os.O_RDONLY, dir_fd=os.open('/etc', os.O_PATH)))",
        removals=(
            Removal("Permission denied", bad="close_descriptors:folder"),
            Removal("walked out", bad="close_descriptors:folder", without="landlock"),
        ),
    ),
    Attempt(
        "176",
        "ask for a folder: fchdir, openat through sockets, pipes and the control socket",
        first="nothing it holds is a folder",
        source="""
import os
result = every([attempt(lambda fd=fd: os.open("..", os.O_RDONLY, dir_fd=fd)) for fd in (0, 1, 2, control.fileno())])
""",
        refused="Not a directory",
        twin="import os; result = attempt(lambda: os.open('..', os.O_PATH, dir_fd=os.open('/tmp', os.O_RDONLY)))",
        removals=(
            Removal(
                "ok",
                bad="close_descriptors:folder",
                without="landlock",
                source="""
import os, stat
folder = next(fd for fd in range(3, 64) if fd != control.fileno() and stat.S_ISDIR(os.fstat(fd).st_mode))
result = attempt(lambda: os.open("..", os.O_RDONLY, dir_fd=folder))
""",
            ),
        ),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
