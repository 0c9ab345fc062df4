"""Attempts of a worker whose slot was born for a device: on a neighbour's, on what is nobody's, and by its own nodes.

The nodes are stand-ins under numbers that have no driver: an open that every wall lets through ends with ENXIO.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator

from bedsit.sandbox.jail import libc
from bedsit.sandbox.nodes import find_nodes
from tests_support.attempts import RIGHTS, Attempt, Props, Removal, make_tests
from tests_support.nodes import ALLOWED, MAJOR, OTHERS, make_node, make_nodes
from tests_support.slots import House

OPEN = "import os\ndef look(path): return attempt(lambda: os.open(path, os.O_RDWR))\n"
NEIGHBOURS = ("nvidia1", "nvidia-caps/nvidia-cap14")
NOBODYS = tuple(name for name in OTHERS if name not in NEIGHBOURS)
#: Linux 6.10: before it landlock has no say in ioctl(2), and a node that is no device of the slot's answers itself.
REFUSES_IOCTL = libc.landlock_abi() >= 5
NO_REQUEST = "Inappropriate ioctl for device"
OWN_REQUEST, FOREIGN_REQUEST = 0xC020_462A, 0x5412  # NV_ESC_RM_CONTROL; TIOCSTI
ASK = "import fcntl\nresult = attempt(lambda: fcntl.ioctl(open('/dev/{}', 'r+b', 0), {:#x}, bytes(64)))"
ADJUST = "result = attempt(lambda: open('/proc/thread-self/oom_score_adj', 'wb', 0).write(b'{}'))"


@contextlib.contextmanager
def put_nodes(house: House) -> Iterator[Props]:
    """The five nodes of the slot's own MIG instance, and everything else that a driver makes."""
    try:
        own = make_nodes(house.folder)
        for name, minor in OTHERS.items():
            make_node(house.folder, name, minor)
        yield Props(nodes=own)
    finally:
        shutil.rmtree(house.folder / "dev")


@contextlib.contextmanager
def put_neighbour_in_hand(house: House) -> Iterator[Props]:
    """As above, and the worker holds a name of its neighbour's node and of its own: descriptors that open nothing."""
    with put_nodes(house) as props:
        paths = [house.folder / "dev" / name for name in ("nvidia1", "nvidia0")]
        fds = tuple(os.open(path, os.O_PATH) for path in paths)
        try:
            yield Props(fds=fds, nodes=props.nodes)
        finally:
            for fd in fds:
                os.close(fd)


@contextlib.contextmanager
def put_zero(house: House) -> Iterator[Props]:
    """A node that opens, for requests: /dev/zero under a GPU's name. Its driver knows no request at all."""
    try:
        yield Props(nodes=find_nodes([make_node(house.folder, "nvidia0", 5, major=1)]))
    finally:
        shutil.rmtree(house.folder / "dev")


def opening(*names: str) -> str:
    """Source that opens each."""
    return f"{OPEN}result = every([look('/dev/' + name) for name in {names!r}])"


ATTEMPTS = (
    Attempt(
        "G1.2",
        "open the nodes of a neighbour's GPU and MIG instance from a slot with a device of its own",
        first="own /dev",
        second="device program",
        stage=put_nodes,
        source=opening(*NEIGHBOURS),
        refused="No such file or directory",
        twin=opening("nvidiactl", "nvidia-uvm", "nvidia0", "nvidia-caps/nvidia-cap12", "nvidia-caps/nvidia-cap13"),
        allowed=ALLOWED,
        removals=(
            Removal("No such file or directory", device_program=False),
            Removal("Operation not permitted", bad="devices:others"),
            Removal(ALLOWED, bad="devices:others", device_program=False),
        ),
    ),
    Attempt(
        "G1.3",
        "make the node of a neighbour's GPU, or its own once more",
        first="seccomp",
        second="landlock, capabilities, device program",
        stage=put_nodes,
        source=f"""
import os
def make(minor): return attempt(lambda: os.mknod(f"/tmp/node{{minor}}", 0o20600, os.makedev({MAJOR}, minor)))
result = every([make(1), make(0)])
""",
        refused="Operation not permitted",
        twin=opening("nvidia0"),
        allowed=ALLOWED,
        removals=(
            Removal("Permission denied", without="seccomp"),
            Removal("Operation not permitted", without="seccomp,landlock"),
            Removal("Operation not permitted", without=f"seccomp,landlock,{RIGHTS}"),
            Removal("ok", without=f"seccomp,landlock,{RIGHTS}", device_program=False),
        ),
    ),
    Attempt(
        "G1.4",
        "open a neighbour's GPU by a descriptor of the box's node, through /proc/self/fd",
        first="device program",
        second="landlock",
        stage=put_neighbour_in_hand,
        source=f"{OPEN}result = look(f'/proc/self/fd/{{fds[0]}}')",
        refused="Operation not permitted",
        twin=opening("nvidia0"),
        allowed=ALLOWED,
        removals=(
            Removal("Permission denied", device_program=False),
            Removal("Operation not permitted", without="landlock"),
            Removal(ALLOWED, without="landlock", device_program=False),
            Removal(ALLOWED, without="landlock", source=f"{OPEN}result = look(f'/proc/self/fd/{{fds[1]}}')"),
        ),
    ),
    Attempt(
        "G2",
        "open what cuts GPUs, watches everybody on them, profiles memory, or switches fabrics",
        first="own /dev",
        second="device program",
        stage=put_nodes,
        source=opening(*NOBODYS),
        refused="No such file or directory",
        twin=opening("nvidia-caps/nvidia-cap12"),
        allowed=ALLOWED,
        removals=(
            Removal("No such file or directory", device_program=False),
            Removal("Operation not permitted", bad="devices:others"),
            Removal(ALLOWED, bad="devices:others", device_program=False),
        ),
    ),
    Attempt(
        "G3",
        "ask for a neighbour's GPU in its environment",
        first="own /dev",
        second="device program",
        stage=put_nodes,
        source="import os\nos.environ['CUDA_VISIBLE_DEVICES'] = 'all'\n" + opening("nvidia1"),
        refused="No such file or directory",
        twin="import os\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\n" + opening("nvidia0"),
        allowed=ALLOWED,
        removals=(
            Removal("Operation not permitted", bad="devices:others"),
            Removal(ALLOWED, bad="devices:others", device_program=False),
        ),
    ),
    Attempt(
        "G13",
        "send a GPU driver's request to a node that is none of its device's",
        first="landlock",
        second="harmless nodes",
        stage=put_zero,
        source=ASK.format("null", OWN_REQUEST),
        refused="Permission denied" if REFUSES_IOCTL else NO_REQUEST,
        twin=ASK.format("nvidia0", OWN_REQUEST),
        allowed=NO_REQUEST,
        removals=(Removal(NO_REQUEST, without="landlock"),),
    ),
    Attempt(
        "G14",
        "send its device a request that is not its driver's",
        first="seccomp",
        second="the driver",
        stage=put_zero,
        source=ASK.format("nvidia0", FOREIGN_REQUEST),
        refused="Operation not permitted",
        twin=ASK.format("nvidia0", OWN_REQUEST),
        allowed=NO_REQUEST,
        removals=(Removal(NO_REQUEST, without="seccomp"),),
    ),
    Attempt(
        "G15",
        "send a GPU driver's request from a slot that was born for no device",
        first="seccomp",
        second="landlock",
        source=ASK.format("zero", OWN_REQUEST),
        refused="Operation not permitted",
        twin="import fcntl, termios\nresult = attempt(lambda: fcntl.ioctl(0, termios.TCGETS, bytes(64)))",
        allowed=NO_REQUEST,
        removals=(
            Removal("Permission denied" if REFUSES_IOCTL else NO_REQUEST, without="seccomp"),
            Removal(NO_REQUEST, without="seccomp,landlock"),
        ),
    ),
    Attempt(
        "17.2",
        "leave the row of the out-of-memory killer by the folder in which CUDA names its threads",
        first="capabilities",
        stage=put_nodes,
        source=ADJUST.format(-1000),
        refused="Permission denied",
        twin="result = attempt(lambda: open('/proc/thread-self/comm', 'wb', 0).write(b'cuda'))",
        removals=(Removal("ok", without=RIGHTS, source=ADJUST.format(0)),),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
