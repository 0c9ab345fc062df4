"""Attempts with names: in the folder that a slot shares with the router, and of folders and files without end."""

import contextlib
import os
from collections.abc import Iterator

from bedsit.sandbox.inspect import find_worker, start_time
from tests_support.attempts import RIGHTS, Attempt, Props, Removal, make_tests
from tests_support.slots import House, Slot

REFUSED = "Operation not permitted"
DENIED = "Permission denied"
READ_ONLY = "Read-only file system"

GAMES = """
import os, socket
def bind():
    socket.socket(socket.AF_UNIX).bind("/run/slot/mine.sock")
result = every([
    attempt(lambda: os.chmod("/run/slot", 0o777)),
    attempt(lambda: os.utime("/run/slot", (0, 0))),
    attempt(lambda: os.mkdir("/run/slot/folder")),
    attempt(bind),
])
"""
DEEP = """
import os
def dig(depth):
    os.chdir("/tmp")
    for _ in range(depth):
        os.mkdir("d" * 255)
        os.chdir("d" * 255)
result = attempt(lambda: dig(%d))
os.chdir("/")
"""
NAME = """
import os
name = {!r}
call("prctl", 15, name)
os.open("/dev/null", os.O_RDONLY)
os.memfd_create("x\\n0: /etc/shadow")
result = "ok"
"""
LYING_NAME = b") R 1 1\n1 1 0 -1"


def check_readers(slot: Slot, _: Props) -> None:
    """Who reads /proc from outside finds the right worker, its start and its walls, whatever it calls itself."""
    with open(f"/proc/{slot.worker}/stat", "rb") as file:
        stat = file.read()
    assert start_time(slot.worker) == int(stat.rpartition(b")")[2].split()[19])
    assert find_worker(slot.pid, [slot.worker, slot.pid]) == slot.worker
    off = {name: state for name, state in slot.walls(blank=False).items() if state != "on"}
    assert off == {}


def check_naive_reader(slot: Slot, _: Props) -> None:
    """Who splits the line at spaces reads another process's fields."""
    with open(f"/proc/{slot.worker}/stat", "rb") as file:
        assert file.read().split(b") ", 1)[1].split()[:2] == [b"R", b"1"]


@contextlib.contextmanager
def put_tmpfs_count(_: House) -> Iterator[Props]:
    """How many inodes the box has free before."""
    free = os.statvfs("/").f_ffree
    yield Props({})
    assert os.statvfs("/").f_ffree > free - 10_000


ATTEMPTS = (
    Attempt(
        "201",
        "change its slot's folder: mode, times, a folder, a socket of its own",
        first="read-only mounts",
        second="landlock, users",
        source=GAMES,
        refused=READ_ONLY,
        twin="import socket; result = attempt(lambda: socket.socket(socket.AF_UNIX).bind('/tmp/mine.sock'))",
        removals=(
            Removal([REFUSED, REFUSED, DENIED, DENIED], bad="slot_folder:writable"),
            Removal([REFUSED, REFUSED, DENIED, DENIED], bad="slot_folder:writable", without="landlock"),
            Removal("ok", bad="slot_folder:writable", without=f"landlock,{RIGHTS}"),
        ),
    ),
    Attempt(
        "202",
        "dig folders so deep that nobody can remove them",
        first="inodes of /tmp",
        second="scratch ends with the slot",
        stage=put_tmpfs_count,
        source=DEEP % 5000,
        refused="No space left on device",
        twin=DEEP % 100,
        removals=(Removal("ok", bad="scratch:endless"),),
    ),
    Attempt(
        "203",
        "a name that reads like other processes' fields in /proc",
        first="readers look behind the last bracket",
        source=NAME.format(LYING_NAME),
        refused="ok",
        outcome="the readers see the right process",
        check=check_readers,
        twin=NAME.format(b"model"),
        removals=(Removal("ok", check=check_naive_reader),),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
