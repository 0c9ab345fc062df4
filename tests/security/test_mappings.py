"""Attempts on shared memory: cut it, unseal it, write where only reading was given, take what nobody counts."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGBUS, SIGKILL

from bedsit.supervisor.router.arenas import make_arena
from tests_support.attempts import LIMITS, RIGHTS, Attempt, Ended, Limits, Props, Removal, make_tests
from tests_support.slots import House, Slot

REFUSED = "Operation not permitted"
SIZE = 1 << 20
BYTES = b"weights!" * 512
SMALL = Limits(memory_bytes=96 << 20, pids_max=64, cpus=1.0)


@contextlib.contextmanager
def put_arenas(_: House) -> Iterator[Props]:
    """An arena as the router makes them, and one that it forgot to seal; both in use by a client."""
    fds = (make_arena(SIZE), os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(fds[1], SIZE)
    for fd in fds:
        os.pwrite(fd, b"input", 0)
    try:
        yield Props({"size": SIZE}, fds)
    finally:
        for fd in fds:
            os.close(fd)


def check_arena(_: Slot, props: Props) -> None:
    """It is as long as before, so whoever has it mapped gets no SIGBUS, and it is sealed as before."""
    assert os.fstat(props.fds[0]).st_size == SIZE
    assert fcntl.fcntl(props.fds[0], fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@contextlib.contextmanager
def put_weights(house: House) -> Iterator[Props]:
    """An artifact open for reading, as in every slot that has it; and one that was opened for writing too."""
    path = house.folder / "artifact"
    path.write_bytes(BYTES)
    path.chmod(0o400)
    fds = (os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR))
    try:
        yield Props({"path": str(path)}, fds)
    finally:
        for fd in fds:
            os.close(fd)
        path.unlink()


def check_weights(_: Slot, props: Props) -> None:
    """The bytes that all slots map are the same."""
    assert Path(props.values["path"]).read_bytes() == BYTES


def check_poison(_: Slot, props: Props) -> None:
    """All slots map other bytes now."""
    assert Path(props.values["path"]).read_bytes() != BYTES


CUT = "import os; result = every([attempt(lambda n=n: os.ftruncate(fds[{}], n)) for n in (0, size - 1, 2 * size)])"
SEAL = "import fcntl; result = attempt(lambda: fcntl.fcntl(fds[{}], fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE))"
MPROTECT = """
import ctypes, mmap
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def poison(fd):
    where = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if libc.mprotect(where, 4096, mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.memmove(where, b"poison", 6)
result = attempt(lambda: poison(fds[{}]))
"""
MAP_WRITE = """
import mmap
def poison(fd):
    mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)[:6] = b"poison"
result = attempt(lambda: poison(fds[{}]))
"""
HUGE_MEMFD = "import os; result = attempt(lambda: os.memfd_create('huge', 0x4))"
HUGE_MAP = (
    "import mmap; result = attempt(lambda: mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))"
)
FILL = """
import os
fd = os.memfd_create("hoard")
for _ in range({}):
    os.write(fd, bytes(1 << 20))
result = "ok"
"""

ATTEMPTS = (
    Attempt(
        "121",
        "cut or stretch the arena that a client has mapped, for a SIGBUS",
        first="seals",
        stage=put_arenas,
        source=CUT.format(0),
        refused=REFUSED,
        check=check_arena,
        twin="import os; os.pwrite(fds[0], b'answer', 64); result = os.pread(fds[0], 6, 64).decode()",
        allowed="answer",
        removals=(Removal("ok", source=CUT.format(1)),),
    ),
    Attempt(
        "122",
        "seal the arena against its client, or take seals away",
        first="seals",
        stage=put_arenas,
        source=SEAL.format(0),
        refused=REFUSED,
        check=check_arena,
        twin="import fcntl; result = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)",
        allowed=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        removals=(Removal("ok", source=SEAL.format(1)),),
    ),
    Attempt(
        "123",
        "punch a hole under the client's mapping",
        first="a hole reads as zeros",
        second="the arena is that tenant's own",
        stage=put_arenas,
        source=f"""
import ctypes, mmap
memory = mmap.mmap(fds[0], size)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
assert libc.fallocate(fds[0], 3, 0, {SIZE}) == 0
result = list(memory[:5])
""",
        refused=[0, 0, 0, 0, 0],
        outcome="zeros, no SIGBUS",
        check=check_arena,
        twin="import mmap; result = mmap.mmap(fds[0], size)[:5].decode()",
        allowed="input",
        # What would be if an arena could shrink: whoever touches its mapping is gone.
        removals=(
            Removal(
                Ended.by(SIGBUS),
                source="import mmap, os; memory = mmap.mmap(fds[1], size); os.ftruncate(fds[1], 0); result = memory[0]",
            ),
        ),
    ),
    Attempt(
        "124",
        "make a read-only mapping of weights writable (mprotect)",
        first="opened for reading only",
        stage=put_weights,
        source=MPROTECT.format(0),
        refused="Permission denied",
        check=check_weights,
        twin="import mmap; result = mmap.mmap(fds[0], 4096, mmap.MAP_SHARED, mmap.PROT_READ)[:7].decode()",
        allowed="weights",
        removals=(Removal("ok", source=MPROTECT.format(1), check=check_poison),),
    ),
    Attempt(
        "125",
        "map weights shared and writable",
        first="opened for reading only",
        stage=put_weights,
        source=MAP_WRITE.format(0),
        refused="Permission denied",
        check=check_weights,
        twin="import mmap; m = mmap.mmap(fds[0], 0, access=mmap.ACCESS_COPY); m[:4] = b'mine'; result = m[:4].decode()",
        allowed="mine",
        removals=(Removal("ok", source=MAP_WRITE.format(1), check=check_poison),),
    ),
    Attempt(
        "126",
        "handle page faults itself (userfaultfd), to stop the kernel half-way",
        first="seccomp",
        second="vm.unprivileged_userfaultfd",
        source="result = attempt(lambda: call('userfaultfd', 0))",
        refused="Function not implemented",
        twin="import mmap; result = attempt(lambda: mmap.mmap(-1, 4096).madvise(mmap.MADV_DONTNEED))",
        removals=(Removal((REFUSED, "ok"), without="seccomp"), Removal("ok", without=f"seccomp,landlock,{RIGHTS}")),
    ),
    Attempt(
        "127",
        "take the box's huge pages, which no memory limit counts",
        first="seccomp",
        second="the pool is empty where nobody made one",
        source=HUGE_MEMFD + "\nsaid = result\n" + HUGE_MAP + "\nresult = every([said, result])",
        refused=REFUSED,
        twin="import mmap, os; os.memfd_create('small'); result = attempt(lambda: mmap.mmap(-1, 2 << 20))",
        removals=(Removal("ok", without="seccomp", source=HUGE_MEMFD),),
    ),
    Attempt(
        "128",
        "hide memory in a memfd",
        first="memory cgroup",
        limits=SMALL,
        source=FILL.format(128),
        refused=Ended.by(SIGKILL),
        outcome="killed: out of memory",
        twin=FILL.format(8),
        removals=(Removal("ok", limits=LIMITS),),
    ),
    Attempt(
        "129",
        "pin memory",
        first="seccomp",
        second="RLIMIT_MEMLOCK",
        source="""
import ctypes, mmap
memory = mmap.mmap(-1, 1 << 20)
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def pin():
    if libc.mlock(ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory)):
        raise OSError(ctypes.get_errno(), "mlock")
result = attempt(pin)
""",
        refused=REFUSED,
        twin="import mmap; memory = mmap.mmap(-1, 1 << 20); memory[:2] = b'ok'; result = memory[:2].decode()",
        removals=(Removal("Cannot allocate memory", without="seccomp"), Removal("ok", without="seccomp,rlimits")),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
