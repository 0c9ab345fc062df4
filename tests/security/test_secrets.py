"""Attempts to find what others left: in the environment, in memory, in open descriptors, on the path of modules."""

import contextlib
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests_support.attempts import Attempt, Props, Removal, attempt, make_tests, write_source
from tests_support.leaks import MARK
from tests_support.marks import INHERITANCE, LAYOUT
from tests_support.slots import House, Slot, Zygote

SECRET = secrets.token_hex(16)
SCAN = """
import re
def scan(pattern):
    # Letter by letter in brackets, so that looking for it does not put it there.
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps.read().splitlines():
            area, rights, *_ = line.split()
            if rights[0] == "r" and "[v" not in line:
                start, end = (int(number, 16) for number in area.split("-"))
                memory.seek(start)
                if re.search(pattern, memory.read(end - start)):
                    return "found"
    return "not found"
"""


def spell(word: str) -> bytes:
    """A pattern that matches *word* and does not contain it."""
    return "".join(f"[{letter}]" for letter in word).encode()


@contextlib.contextmanager
def put_file(_: House) -> Iterator[Props]:
    """A file of the box's that every user may read."""
    folder = Path(tempfile.mkdtemp(prefix="bedsit-home-"))
    folder.chmod(0o755)
    (folder / "file").write_text("secret")
    (folder / "file").chmod(0o644)
    try:
        yield Props({"path": str(folder / "file")})
    finally:
        shutil.rmtree(folder)


def check_descriptors(slot: Slot, _: Props) -> None:
    """The inspection from outside finds nothing of the box's either, in worker and init."""
    assert slot.walls()["closed_descriptors"] == "on"


ATTEMPTS = (
    Attempt(
        "27",
        "use a descriptor that was left open",
        first="close_range",
        second="landlock",
        stage=put_file,
        source="""
import os, stat
def is_folder(fd):
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    except OSError:  # the one that listed them
        return False
fds = [int(name) for name in os.listdir("/proc/self/fd")]
folders = [fd for fd in fds if is_folder(fd)]
ways = [attempt(lambda fd=fd: os.open(path[1:], os.O_RDONLY, dir_fd=fd)) for fd in folders]
result = [f"{len(fds) - 1} open", every(ways) if ways else "no folder"]
""",
        refused=["4 open", "no folder"],
        check=check_descriptors,
        twin="import os; fd = os.open('/tmp', 0); result = attempt(lambda: os.open('.', 0, dir_fd=fd))",
        removals=(
            Removal(["5 open", "Permission denied"], bad="close_descriptors:folder"),
            Removal(["5 open", "ok"], bad="close_descriptors:folder", without="landlock"),
        ),
    ),
    Attempt(
        "28",
        "scan its memory for what the trusted side knows",
        first="the zygote holds no secret",
        source=SCAN + f"result = scan({spell(SECRET)!r})",
        refused="not found",
        twin=SCAN + "own = 'it is ' + 'mine'; result = 'ok' if scan(b'it is mine') == 'found' else 'blind'",
        removals=(Removal("found", options=("--secret", SECRET)),),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)

LOOK = f"""
import os
names = set(os.environ)
initial = open("/proc/self/environ", "rb").read()
result = "found" if {MARK!r} in names or {MARK!r}.encode() in initial else scan({spell(MARK)!r})
"""


def ask_zygote(zygote: Zygote, house: House, source: str) -> Any:
    """Run *source* in a slot of this zygote."""
    slot = house.spawn(zygote)
    try:
        return slot.run(write_source(source))
    finally:
        house.end(slot)


@INHERITANCE(part="removed", outcome="found")
def test_a_zygote_with_an_environment_would_tell_it(ground: Any) -> None:
    """Whatever stands in it is in the memory of every slot, although the variables themselves are cleared."""
    zygote = ground.house.start_zygote(environment=dict(os.environ))
    try:
        assert MARK in os.environ
        assert ask_zygote(zygote, ground.house, SCAN + LOOK) == "found"
    finally:
        zygote.sock.close()
        zygote.process.kill()
        zygote.process.wait()
        ground.house.zygotes.remove(zygote)


POISON = functools.partial(
    attempt,
    "58",
    "leave a module for the zygote or a later slot to import",
    first="the zygote's path",
    second="landlock",
)
PLANT = """
import os, sys
for folder in ("/tmp", "/bundle", "/dev/shm", *sys.path):
    try:
        with open(folder + "/bedsit_evil.py", "w") as file:
            os.fchmod(file.fileno(), 0o644)
    except OSError:
        pass
"""
IMPORT = "result = attempt(lambda: __import__('bedsit_evil'))"
PACKAGES = f"/var/tmp/bedsit-shared-{os.getpid()}"


def plant_and_import(ground: Any, *options: str) -> list[str]:
    """One slot plants a module wherever it can; what it finds itself, and what the next slot finds."""
    Path(PACKAGES).mkdir()
    Path(PACKAGES).chmod(0o777)
    try:
        found = []
        for source in (PLANT + "sys.path.insert(0, '/bundle'); " + IMPORT, IMPORT):
            with ground.slot("--packages", PACKAGES, *options) as slot:
                found.append(slot.run(source))
        return found
    finally:
        shutil.rmtree(PACKAGES)


@POISON(part="attack", outcome="ModuleNotFoundError")
def test_a_planted_module_is_imported_by_nobody_else(ground: Any) -> None:
    """No folder of the zygote's path can be written by a slot, and nothing that a slot can write is on it."""
    assert plant_and_import(ground)[1] == "ModuleNotFoundError"


@POISON(part="twin", outcome="ok")
def test_a_module_of_its_own_is_imported(ground: Any) -> None:
    """The slot itself finds what it wrote into its bundle."""
    assert plant_and_import(ground)[0] == "ok"


@POISON(part="removed", outcome="ok")
def test_a_writable_folder_on_the_path_would_poison_all(ground: Any) -> None:
    """With a writable tree the next slot imports what the first one planted; landlock alone still forbids it."""
    bad = ("--bad", "trees:writable", "--without")
    assert plant_and_import(ground, *bad, "self_check")[1] == "ModuleNotFoundError"
    assert plant_and_import(ground, *bad, "self_check,landlock")[1] == "ok"


@LAYOUT(part="removed", outcome="the same address")
def test_siblings_of_one_generation_share_a_layout(ground: Any) -> None:
    """Without a new generation between them, what one slot knows of its addresses holds in the next one too."""
    source = "result = ctypes.cast(libc.getpid, ctypes.c_void_p).value"
    found = []
    for _ in range(2):
        with ground.slot() as slot:
            found.append(slot.run(write_source(source)))
    assert found[0] == found[1]
