"""Attempts through /proc: to be treated better than others, to write what is read-only, to open again what is open."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests_support.attempts import RIGHTS, Attempt, Props, Removal, make_tests
from tests_support.slots import House, Slot

REFUSED = "Operation not permitted"
DENIED = "Permission denied"
CAP_SYS_RESOURCE = 24
SECRET = b"what all tenants read" * 200

WRITE = """
def write(name, text):
    with open("/proc/self/" + name, "w") as file:
        file.write(text)

result = every([attempt(lambda name=name, text=text: write(name, text)) for name, text in {!r}])
"""
MAPS = (("uid_map", "0 0 1"), ("gid_map", "0 0 1"), ("setgroups", "allow"))
# The file that is mapped, and where: a shared and a private mapping of it.
MAP = """
import mmap, os
def address(memory):
    line = [line for line in open("/proc/self/maps") if "artifact" in line][-1]
    return int(line.split("-")[0], 16)

def poke(memory):
    where = address(memory)
    with open("/proc/self/mem", "r+b", buffering=0) as file:
        file.seek(where)
        file.write(b"poisoned")
"""


def can(capability: int) -> bool:
    """Whether this process, and so the zygote that it starts, has the capability."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> capability & 1)


def read_autogroup(slot: Slot) -> str:
    """How nice the kernel is to the session of the slot's zygote."""
    zygote = Path(f"/proc/{slot.pid}/stat").read_text().rpartition(")")[2].split()[1]
    return Path(f"/proc/{zygote}/autogroup").read_text().split()[-1]


def check_same_autogroup(slot: Slot, _: Props) -> None:
    """The zygote is where it was."""
    assert read_autogroup(slot) == "0"


def check_other_autogroup(slot: Slot, _: Props) -> None:
    """The zygote, and all who share its session, come last from now on. Only this list of steps has this zygote."""
    assert read_autogroup(slot) == "19"


@contextlib.contextmanager
def put_artifacts(house: House) -> Iterator[Props]:
    """An artifact as the daemon opens it, and one whose mode would let everybody write."""
    fds = []
    paths = [house.folder / "artifact", house.folder / "artifact-open"]
    for path, mode in zip(paths, (0o400, 0o666), strict=True):
        path.write_bytes(SECRET)
        path.chmod(mode)
        fds.append(os.open(path, os.O_RDONLY))
    try:
        yield Props({"paths": [str(path) for path in paths]}, tuple(fds))
    finally:
        for fd, path in zip(fds, paths, strict=True):
            os.close(fd)
            path.unlink()


def check_artifacts(_: Slot, props: Props) -> None:
    """Not a byte changed."""
    assert [Path(path).read_bytes() for path in props.values["paths"]] == [SECRET, SECRET]


def check_changed(_: Slot, props: Props) -> None:
    """Whoever maps that file reads something else now."""
    assert Path(props.values["paths"][1]).read_bytes() != SECRET


ATTEMPTS = [
    Attempt(
        "101",
        "take back its place before the out-of-memory killer",
        first="landlock",
        second="capabilities",
        source=WRITE.format((("oom_score_adj", "0"),)),
        refused=DENIED,
        twin="result = open('/proc/self/oom_score_adj').read().strip()",
        allowed="900",
        # Where the zygote has this capability its own 900 is a floor; systemd's units run it without.
        removals=(Removal(DENIED if can(CAP_SYS_RESOURCE) else "ok", without="landlock"),),
    ),
    Attempt(
        "103",
        "map more users, allow groups again",
        first="landlock",
        second="user namespace: maps are written once",
        source=WRITE.format(MAPS),
        refused=DENIED,
        twin="result = len(open('/proc/self/uid_map').readlines())",
        allowed=2,
        removals=(Removal([REFUSED, REFUSED, DENIED], without="landlock"),),
    ),
    Attempt(
        "104",
        "what is dumped, what counts as used, in whose name: coredump_filter, clear_refs, timerslack_ns",
        first="landlock",
        second="only the process itself is meant",
        source=WRITE.format((("coredump_filter", "0xff"), ("clear_refs", "1"), ("timerslack_ns", "0"))),
        refused=DENIED,
        twin="result = attempt(lambda: open('/proc/self/coredump_filter').read())",
        removals=(Removal("ok", without="landlock"),),
    ),
    Attempt(
        "105",
        "write through /proc/self/mem to a shared mapping of an artifact",
        first="landlock",
        second="the kernel forces no shared page",
        stage=put_artifacts,
        source=MAP
        + "memory = mmap.mmap(fds[0], 0, mmap.MAP_SHARED, mmap.PROT_READ); result = attempt(lambda: poke(memory))",
        refused=DENIED,
        check=check_artifacts,
        twin=MAP + "memory = mmap.mmap(fds[0], 0, mmap.MAP_SHARED, mmap.PROT_READ); result = memory[:4].decode()",
        allowed="what",
        removals=(Removal("Input/output error", without="landlock", check=check_artifacts),),
    ),
    Attempt(
        "106",
        "write through /proc/self/mem to a private mapping of an artifact",
        first="landlock",
        second="copy on write",
        stage=put_artifacts,
        source=MAP
        + "memory = mmap.mmap(fds[0], 0, mmap.MAP_PRIVATE, mmap.PROT_READ); result = attempt(lambda: poke(memory))",
        refused=DENIED,
        check=check_artifacts,
        twin=MAP
        + "memory = mmap.mmap(fds[0], 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE); memory[:4] = b'mine';"
        " result = memory[:4].decode()",
        allowed="mine",
        removals=(Removal("ok", without="landlock", check=check_artifacts),),
    ),
    Attempt(
        "110",
        "open an artifact again for writing, through /proc/self/fd",
        first="landlock",
        second="the file's mode",
        stage=put_artifacts,
        source="""
import os
def again(fd):
    os.write(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"poisoned")
result = every([attempt(lambda fd=fd: again(fd)) for fd in fds])
""",
        refused=DENIED,
        check=check_artifacts,
        twin="import os; result = attempt(lambda: os.pread(fds[0], 4, 0))",
        # The second file's mode is wrong on purpose: the mode is the wall that is left.
        removals=(Removal([DENIED, "ok"], without="landlock", check=check_changed),),
    ),
    Attempt(
        "111",
        "take over its log: read its own output pipe, write to its init's end",
        first="users: the pipe is root's",
        source="""
import os
result = every([
    attempt(lambda: os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)),
    attempt(lambda: os.open("/proc/self/fd/2", os.O_RDWR | os.O_NONBLOCK)),
])
""",
        refused=DENIED,
        twin="import os; result = attempt(lambda: os.write(1, b'said\\n'))",
        removals=(Removal("ok", without=f"landlock,{RIGHTS}"),),
    ),
    Attempt(
        "112",
        "open the interpreter again for writing, through /proc/self/exe",
        first="landlock",
        second="users; text that runs",
        source="import os; result = attempt(lambda: os.open('/proc/self/exe', os.O_WRONLY))",
        refused=DENIED,
        twin="import os; result = attempt(lambda: os.open('/proc/self/exe', os.O_RDONLY))",
        removals=(Removal(DENIED, without="landlock"), Removal("Text file busy", without=f"landlock,{RIGHTS}")),
    ),
    Attempt(
        "113",
        "open the memory of others by address, through /proc/self/map_files",
        first="capabilities",
        second="landlock",
        source="""
import os
names = os.listdir("/proc/self/map_files")
result = attempt(lambda: os.open("/proc/self/map_files/" + names[0], os.O_RDONLY))
""",
        refused=REFUSED,
        twin="import os; result = attempt(lambda: os.listdir('/proc/self/map_files'))",
        removals=(Removal("ok", without=RIGHTS), Removal("ok", without=f"landlock,{RIGHTS}")),
    ),
    Attempt(
        "114",
        "leave through /proc/self/root and /proc/self/cwd",
        first="pivot: there is nothing above",
        second="landlock",
        source="""
import os
paths = [f"/proc/self/{link}/../../{box}etc/hostname" for link in ("root", "cwd")
         for box in ("", "box/" if os.path.isdir("/box") else "")]
result = every([attempt(lambda path=path: open(path).read()) for path in dict.fromkeys(paths)])
""",
        refused="No such file or directory",
        twin="result = attempt(lambda: open('/proc/self/root/etc/passwd').read())",
        removals=(
            Removal(["No such file or directory", DENIED] * 2, bad="pivot:box_kept"),
            Removal(["No such file or directory", "ok"] * 2, bad="pivot:box_kept", without="landlock"),
        ),
    ),
    Attempt(
        "115",
        "climb from its namespaces to their owners: ioctl on /proc/self/ns",
        first="seccomp",
        second="namespaces made by real root",
        source="""
import fcntl, os
def climb(kind, request):
    fd = os.open("/proc/self/ns/" + kind, os.O_RDONLY)
    fcntl.ioctl(fd, request)
result = every([attempt(lambda k=k, r=r: climb(k, r)) for k, r in (("net", 0xB701), ("pid", 0xB702), ("user", 0xB702))])
""",
        refused=REFUSED,
        twin="import os; result = attempt(lambda: os.readlink('/proc/self/ns/net'))",
        removals=(Removal(REFUSED, without="seccomp"),),
    ),
]
if Path("/proc/self/autogroup").exists():
    ATTEMPTS.append(
        Attempt(
            "102",
            "make its whole session nice, and with it the zygote and other slots (autogroup)",
            first="landlock",
            second="own session",
            source=WRITE.format((("autogroup", "19"),)),
            refused=DENIED,
            check=check_same_autogroup,
            twin="result = attempt(lambda: open('/proc/self/autogroup').read())",
            removals=(
                Removal("ok", without="landlock", check=check_same_autogroup),
                Removal("ok", without="landlock,own_session", check=check_other_autogroup),
            ),
        )
    )

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
