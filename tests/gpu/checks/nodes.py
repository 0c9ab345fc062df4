"""Which device nodes a CUDA process opens, and whether it starts where only some of them exist."""

import ctypes
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tests.gpu.cuda import find_nodes
from tests.gpu.gpu import Gpu
from tests.gpu.holder import become
from tests.gpu.peer import Peer, PeerError, serve
from tests.gpu.report import Report

_PLAIN: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/full")
_WANTED: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0")
_NOBODY: Final = 65534
_NEWNS: Final = 0x20000
_READ_ONLY, _REMOUNT, _REC, _PRIVATE = 1, 32, 16384, 1 << 18


def check(report: Report) -> None:
    """First a process with everything, then, all at once, processes that lack something."""
    with Peer("checks.nodes:start") as peer:
        peer.ask("init")
        seen = peer.ask("look")
    opened = sorted(set(seen["descriptors_to"]) | set(seen["mapped"]))
    nodes = [path for path in opened if path in find_nodes()]
    report.row(
        "open or mapped once a kernel ran",
        ", ".join(path.removeprefix("/dev/") for path in opened),
        "",
        None,
        **seen,
    )
    report.row("threads of the driver's", f"{seen['threads']}")
    tries = _list_tries(nodes)
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer("checks.nodes:start")) for _ in tries]
        for peer, (_, arguments, _) in zip(peers, tries, strict=True):
            peer.tell("init_in", **arguments)
        for peer, (what, _, is_expected) in zip(peers, tries, strict=True):
            with report.step(what):
                figure = _hear(peer)
                ok = None if is_expected is None else (figure == "starts") is is_expected
                report.row(what, figure, {True: "starts", False: "fails", None: ""}[is_expected], ok)


def _list_tries(nodes: Sequence[str]) -> list[tuple[str, dict[str, Any], bool | None]]:
    """What is tried, how, and whether it should start."""
    few = [path for path in _WANTED if os.path.exists(path)]
    names = ", ".join(path.removeprefix("/dev/") for path in few)
    return [
        ("with all nodes that it opened", {"nodes": list(nodes)}, True),
        *((f"with those but {path}", {"nodes": [n for n in nodes if n != path]}, None) for path in nodes),
        (f"with {names}", {"nodes": few}, True),
        ("with these, as nobody, no capabilities", {"nodes": few, "user": _NOBODY}, True),
        ("with these, /proc/driver hidden", {"nodes": few, "hidden": ["/proc/driver"]}, None),
        ("with these, /sys hidden", {"nodes": few, "hidden": ["/sys"]}, None),
        (
            "with these, as nobody, both hidden",
            {"nodes": few, "user": _NOBODY, "hidden": ["/proc/driver", "/sys"]},
            None,
        ),
        ("with these, no /dev/shm, no /tmp", {"nodes": few, "user": _NOBODY, "hidden": ["/tmp"], "shm": False}, None),
    ]


def _hear(peer: Peer) -> str:
    try:
        peer.hear()
    except (PeerError, TimeoutError) as e:
        return str(e)[:90]
    return "starts"


class Start:
    """Handlers of the words."""

    def __init__(self) -> None:
        self._gpu: Any = None

    def init(self) -> dict[str, Any]:
        """All the way to a kernel that has run."""
        self._gpu = Gpu()
        self._gpu.shared_fill(0)
        return {}

    def look(self) -> dict[str, Any]:
        """What this process has open and mapped that is no ordinary file, and its threads."""
        targets = [os.readlink(entry) for entry in _list_links("/proc/self/fd")]
        with open("/proc/self/maps") as maps:
            paths = [line.split(maxsplit=5)[5].strip() for line in maps if len(line.split(maxsplit=5)) == 6]
        libraries = sorted({path for path in paths if "nvidia" in path or "cuda" in path})
        threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
        return {
            "descriptors_to": [target for target in targets if target.startswith("/dev/nv")],
            "other_descriptors": [target for target in targets if not target.startswith("/dev/nv")],
            "mapped": sorted({path for path in paths if path.startswith("/dev/nv")}),
            "libraries": [path for path in libraries if not path.startswith("/dev/")],
            "threads": threads,
        }

    def init_in(
        self, nodes: Sequence[str], hidden: Sequence[str] = (), user: int | None = None, *, shm: bool = True
    ) -> dict[str, Any]:
        """The same where /dev has these nodes and the plain ones only, and what is *hidden* is empty."""
        confine([*filter(os.path.exists, _PLAIN), *nodes], hidden, shm=shm)
        if user is not None:
            become(user)
        return self.init()


def _list_links(folder: str) -> list[str]:
    paths = [f"{folder}/{name}" for name in os.listdir(folder)]
    return [path for path in paths if os.path.islink(path)]


def start(sock: socket.socket) -> None:
    """The peer."""
    begun = Start()
    serve(sock, {"init": begun.init, "look": begun.look, "init_in": begun.init_in})


def confine(nodes: Sequence[str], hidden: Sequence[str], *, shm: bool) -> None:
    """Give this process a /dev of these nodes only, in a mount namespace of its own, and empty folders for *hidden*."""
    # JUSTIFICATION: os has no mount, and no unshare before Python 3.12.
    # SAFETY: this process alone sees the mounts; the namespace is made private before the first of them.
    libc = ctypes.CDLL(None, use_errno=True)
    _do(libc.unshare(_NEWNS), "unshare")
    _do(libc.mount(None, b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None), "make / private")
    status = {path: os.stat(path) for path in nodes}
    _do(libc.mount(b"tmpfs", b"/dev", b"tmpfs", ctypes.c_ulong(0), b"mode=0755"), "mount /dev")
    for path, each in status.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mknod(path, each.st_mode, each.st_rdev)
        os.chmod(path, each.st_mode & 0o7777)
    if shm:
        os.mkdir("/dev/shm")
    # The driver's helper makes missing nodes where it can.
    _do(libc.mount(None, b"/dev", None, ctypes.c_ulong(_REMOUNT | _READ_ONLY), None), "make /dev read-only")
    if shm:
        _do(libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", ctypes.c_ulong(0), b"mode=1777"), "mount /dev/shm")
    for folder in hidden:
        _do(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", ctypes.c_ulong(_READ_ONLY), b"mode=0755"), f"hide {folder}")


def _do(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
