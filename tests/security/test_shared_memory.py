"""Attempts on memory that is shared: the bytes of an artifact, the arena of a session."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

from bedsit.supervisor.router.arenas import make_arena
from tests_support.attempts import Attempt, Props, Removal, make_tests
from tests_support.slots import House, Slot

WEIGHTS = b"weights" * 1000
REOPEN = "import os; result = attempt(lambda: os.open(f'/proc/self/fd/{fds[0]}', os.O_RDWR))"
SHRINK = """
import fcntl, os
result = every([
    attempt(lambda: os.ftruncate(fds[0], 0)),
    attempt(lambda: os.ftruncate(fds[0], 1 << 20)),
    attempt(lambda: fcntl.fcntl(fds[0], 1033, 8)),  # F_ADD_SEALS, F_SEAL_WRITE
])
"""


@contextlib.contextmanager
def open_artifact(house: House, mode: int = 0o400, flags: int = os.O_RDONLY) -> Iterator[Props]:
    """An artifact as the daemon opens it for a worker."""
    path = house.folder / "artifact"
    path.write_bytes(WEIGHTS)
    path.chmod(mode)
    fd = os.open(path, flags)
    try:
        yield Props({}, (fd,))
    finally:
        os.close(fd)
        path.unlink()


@contextlib.contextmanager
def hand_over(_: House, make: Callable[[int], int] = make_arena) -> Iterator[Props]:
    """An arena as the router makes it."""
    fd = make(64 << 10)
    try:
        yield Props({}, (fd,))
    finally:
        os.close(fd)


def make_unsealed(size_bytes: int) -> int:
    """An arena that somebody forgot to seal."""
    fd = os.memfd_create("arena", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    return fd


def check_weights(_: Slot, props: Props) -> None:
    """Siblings read the same bytes as before."""
    assert os.pread(props.fds[0], len(WEIGHTS) + 1, 0) == WEIGHTS


def check_size(_: Slot, props: Props) -> None:
    """Nobody who has it mapped can run into its end."""
    assert os.fstat(props.fds[0]).st_size == 64 << 10


ATTEMPTS = (
    Attempt(
        "44.1",
        "write to shared weights, cut them, map them writable",
        first="opened read-only",
        stage=open_artifact,
        source="""
import mmap, os
result = [
    attempt(lambda: os.pwrite(fds[0], b"x", 0)),
    attempt(lambda: mmap.mmap(fds[0], 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)),
    attempt(lambda: os.ftruncate(fds[0], 0)),
]
""",
        refused=["Bad file descriptor", "Permission denied", "Invalid argument"],
        check=check_weights,
        twin="""
import mmap
own = mmap.mmap(fds[0], 0, access=mmap.ACCESS_COPY)
own[0:1] = b"x"
result = "ok"
""",
        removals=(Removal(["ok", "ok", "ok"], stage=functools.partial(open_artifact, flags=os.O_RDWR)),),
    ),
    Attempt(
        "44.2",
        "open shared weights once more, for writing",
        first="landlock",
        second="the artifact's mode",
        stage=open_artifact,
        source=REOPEN,
        refused="Permission denied",
        check=check_weights,
        twin="import os; result = attempt(lambda: os.pread(fds[0], 8, 0))",
        removals=(
            Removal("Permission denied", stage=functools.partial(open_artifact, mode=0o666)),
            Removal("Permission denied", without="landlock"),
            Removal("ok", without="landlock", stage=functools.partial(open_artifact, mode=0o666)),
        ),
    ),
    Attempt(
        "45",
        "shrink the arena under somebody who reads it",
        first="seals",
        stage=hand_over,
        source=SHRINK,
        refused="Operation not permitted",
        check=check_size,
        twin="import mmap; result = attempt(lambda: mmap.mmap(fds[0], 0).write(b'an answer'))",
        removals=(Removal("ok", stage=functools.partial(hand_over, make=make_unsealed)),),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
