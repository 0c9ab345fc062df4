"""Attempts on devices: name them, make them, open one that should not be there."""

import contextlib
import os
import stat
from collections.abc import Iterator

from tests_support.attempts import RIGHTS, Attempt, Props, Removal, make_tests
from tests_support.slots import House

#: "Local or experimental" in the kernel's list of majors: nobody's driver answers, so that nothing can happen.
FAKE_MAJOR = 240
NO_DRIVER = NO_TERMINAL = "No such device or address"


@contextlib.contextmanager
def put_node(house: House) -> Iterator[Props]:
    """A device node on the box that every user may open, as another tenant's GPU is."""
    node = house.folder / "node"
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(FAKE_MAJOR, 0))
    node.chmod(0o666)
    try:
        yield Props()
    finally:
        node.unlink()


ATTEMPTS = (
    Attempt(
        "7",
        "make the node of the box's disk",
        first="seccomp",
        second="landlock, capabilities, device program",
        source=f"""
import os
def make():
    os.mknod("/tmp/disk", 0o20600, os.makedev({FAKE_MAJOR}, 0))
result = attempt(make)
""",
        refused="Operation not permitted",
        twin="result = attempt(lambda: open('/tmp/disk', 'w').write('a plain file'))",
        removals=(
            Removal("Permission denied", without="seccomp"),
            Removal("Operation not permitted", without="seccomp,landlock"),
            Removal("Operation not permitted", without=f"seccomp,landlock,{RIGHTS}"),
            Removal("ok", without=f"seccomp,landlock,{RIGHTS}", device_program=False),
        ),
    ),
    Attempt(
        "8",
        "open the kernel's log and the operator's terminal",
        first="own /dev",
        second="device program",
        source="result = every([attempt(lambda path=path: open(path)) for path in ('/dev/kmsg', '/dev/tty')])",
        refused="No such file or directory",
        twin="result = attempt(lambda: open('/dev/null', 'w').write('x'))",
        removals=(
            Removal("Operation not permitted", bad="devices"),
            # The log is for whoever has CAP_SYSLOG, and a slot has no terminal: but both drivers were reached.
            Removal(
                (["ok", NO_TERMINAL], ["Operation not permitted", NO_TERMINAL]), bad="devices", device_program=False
            ),
        ),
    ),
    Attempt(
        "G1",
        "open another tenant's GPU",
        first="own /dev",
        second="device program",
        stage=put_node,
        source="result = attempt(lambda: open('/dev/other', 'rb'))",
        refused="No such file or directory",
        twin="result = attempt(lambda: open('/dev/urandom', 'rb').read(8))",
        removals=(
            Removal("Operation not permitted", bad="devices:one"),
            Removal(NO_DRIVER, bad="devices:one", device_program=False),
        ),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
