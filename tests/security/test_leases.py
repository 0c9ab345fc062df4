"""Attempts on the page that says whose turn it is: a worker that could write there would never have to wait."""

from typing import Any

import pytest

from bedsit.ipc.leasepage import NAME, LeasePage, Turn
from tests_support.attempts import RIGHTS, Ground, Removal, attempt, describe, write_source

NUMBER, TITLE = "241", "give itself the turn: write to its lease page, by a mapping too, or take it away"
FIRST, SECOND = "the file's mode", "read-only mounts, landlock"
DENIED, READ_ONLY = "Permission denied", "Read-only file system"
#: The page of who waits, after one turn.
WAITS = [1 << 2 | Turn.WAIT, 7]

TAKE = """
import ctypes, mmap, os
PAGE = "/run/slot/lease"
HELD = (1 << 40) << 2 | 1
fd = os.open(PAGE, os.O_RDONLY)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)

def write():
    with open(PAGE, "r+b", buffering=0) as page:
        page.write(HELD.to_bytes(8, "little"))

def remap():
    if libc.mprotect(address, 4096, mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    ctypes.c_uint64.from_address(address).value = HELD

def move():
    os.rename(PAGE, "/run/slot/another")
"""
KEPT = [DENIED, DENIED, READ_ONLY]
ATTACK = TAKE + "result = [attempt(write), attempt(remap), attempt(move)]\n"
TWIN = TAKE + "result = [ctypes.c_uint64.from_address(address + 8 * n).value for n in range(2)]\n"
#: Steps taken out, and what comes of it: landlock's answer, that of the file's mode, and success but for the mapping.
REMOVALS = (
    Removal([DENIED, DENIED, DENIED], bad="slot_folder:writable"),
    Removal([DENIED, DENIED, DENIED], bad="slot_folder:writable", without="landlock"),
    Removal(["ok", DENIED, "ok"], bad="slot_folder:writable", without=f"landlock,{RIGHTS}"),
)


def take(ground: Ground, source: str, *options: str) -> tuple[Any, list[int]]:
    """What comes of *source* in a slot whose turn it is not, and its page as the router has it afterwards."""
    with ground.slot(*options) as slot:
        page = LeasePage(ground.house.folder / "slots" / slot.id / NAME)
        page.grant(7)
        page.revoke()
        outcome = slot.try_out(write_source(source, init_pid=slot.pid))
        words = list(page._words[:2])
        page.close()
        return outcome, words


@attempt(NUMBER, TITLE, first=FIRST, second=SECOND, part="attack", outcome=describe(KEPT))
def test_nobody_gives_itself_the_turn(ground: Ground) -> None:
    """Nothing of it changes a bit of the page."""
    outcome, words = take(ground, ATTACK)
    assert outcome == KEPT
    assert words == WAITS


@attempt(NUMBER, TITLE, first=FIRST, second=SECOND, part="twin", outcome=describe(WAITS))
def test_everybody_reads_its_own(ground: Ground) -> None:
    """The same mapping tells a worker what the router wrote."""
    assert take(ground, TWIN) == (WAITS, WAITS)


@pytest.mark.parametrize(
    "removal",
    [
        pytest.param(
            each, marks=attempt(NUMBER, TITLE, first=FIRST, second=SECOND, part="removed", outcome=describe(each.found))
        )
        for each in REMOVALS
    ],
    ids=str,
)
def test_a_folder_that_can_be_written_to_is_held_by_landlock_and_modes(ground: Ground, removal: Removal) -> None:
    """Without all three it has the turn for as long as it likes; a mapping for reading stays one."""
    outcome, words = take(ground, ATTACK, *removal.zygote_options)
    assert outcome == removal.found
    assert (words == WAITS) is (outcome[0] != "ok")
