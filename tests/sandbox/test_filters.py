"""How the two filters get into a slot, what they say to it, and what becomes of an order that is broken.

That each call is refused is shown in tests/security, that the list is what the kernel gets in test_policy.
"""

import fcntl
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc import seqpacket
from bedsit.sandbox.inspect import LAYERS
from bedsit.sandbox.jail import landlock, libc
from bedsit.sandbox.jail.context import Context, House, Order
from bedsit.sandbox.jail.landlock import Right
from bedsit.sandbox.jail.steps import STEPS, StepFailed, enter
from bedsit.sandbox.refusals import KEPT, Refusals
from bedsit.sandbox.seccomp import compile_filter, libseccomp
from tests_support.slots import PROGRAM, Slot

PIDFD_OPEN = 434
UNKNOWN = """
import ctypes, errno, threading
libc = ctypes.CDLL(None, use_errno=True)
def unknown(number):
    libc.syscall(number, -1, 0)
    return errno.errorcode[ctypes.get_errno()]
"""


def test_an_unknown_call_is_refused_by_init_and_told_once(slot: Slot) -> None:
    """ENOSYS each time, for any thread, and one packet a number."""
    found = slot.run(
        UNKNOWN
        + """
seen = []
threads = [threading.Thread(target=lambda: seen.extend(unknown(434) for _ in range(50))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
result = [sorted(set(seen)), len(seen), unknown(1000)]
"""
    )
    assert found == [["ENOSYS"], 200, "ENOSYS"]
    assert slot.refused == [PIDFD_OPEN, 1000]


def test_what_is_told_of_unknown_calls_is_bounded(slot: Slot) -> None:
    """A worker that makes up a thousand numbers has 64 of them told; all are refused."""
    found = slot.run(UNKNOWN + "result = sorted({unknown(1000 + n) for n in range(1000)})")
    assert found == ["ENOSYS"]
    assert slot.refused == [1000 + n for n in range(KEPT)]


def test_who_comes_later_hears_of_unknown_calls(slot: Slot) -> None:
    """A call made while no daemon was there is told to the next one, once."""
    source = UNKNOWN + "unknown(434); control.send(b'made'); import signal; signal.pause()"
    with slot.connect() as sock:
        logs = [os.memfd_create("log") for _ in range(2)]
        message = {"op": "assign", "body": source.encode(), "log_bytes": 1 << 16, "fds": ["log", "log"]}
        seqpacket.send_packet(sock, message, logs)
        seqpacket.close_all(logs)
    packets = []
    with slot.connect() as sock:
        seqpacket.send_packet(sock, {"op": "hello"})
        while {"op": "worker", "body": b"made"} not in packets or len(packets) < 3:
            packets.append(seqpacket.recv_packet(sock)[0])
    assert packets.count({"op": "refused_call", "number": PIDFD_OPEN}) == 1


def test_a_worker_that_is_killed_while_it_asks_leaves_init_well(slot: Slot) -> None:
    """Init answers on, and tells the end as ever."""
    with slot.connect() as sock:
        logs = [os.memfd_create("log") for _ in range(2)]
        source = (
            UNKNOWN
            + "for _ in range(8):\n    threading.Thread(target=lambda: [unknown(434) for _ in range(10**9)]).start()"
        )
        message = {"op": "assign", "body": source.encode(), "log_bytes": 1 << 16, "fds": ["log", "log"]}
        seqpacket.send_packet(sock, message, logs)
        seqpacket.close_all(logs)
        heard = []
        while {"op": "refused_call", "number": PIDFD_OPEN} not in heard:
            heard.append(seqpacket.recv_packet(sock)[0])
        os.kill(slot.worker, signal.SIGKILL)
        while heard[-1] != {"op": "exited", "status": int(signal.SIGKILL)}:
            heard.append(seqpacket.recv_packet(sock)[0])


def test_a_signal_costs_nobody_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that interrupts the answer has it given again, or who asked would wait for ever.

    One before the question is no event at all: the question still waits.
    """
    calls, interrupted = [], [0xC050_2100, 0xC018_2101, 0xC018_2101]

    def ioctl(_fd: int, request: int, _data: object) -> int:
        calls.append(request)
        if request in interrupted:
            interrupted.remove(request)
            raise InterruptedError
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    refusals = Refusals(5)
    refusals.answer(select.POLLIN)
    assert refusals.take_news() == []
    refusals.answer(select.POLLIN)
    assert refusals.take_news() == [0]
    assert calls == [0xC050_2100, 0xC050_2100, *[0xC018_2101] * 3]


def test_a_worker_that_ended_is_no_kernel_without_filters() -> None:
    """Init, which waits for the worker's listener, fails the build: nothing but a kernel's no makes a wall missing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with ours:
        context = Context(
            order=Order("s1", 5, 6, "/", 1, 1),
            house=House((), (), "/", ""),
            listener=-1,
            build=-1,
            group=-1,
            joins=(),
            report=ours,
            ids=(5, 6),
            role="init",
            control=ours.fileno(),
        )
        step = next(step for step in STEPS if step.name == "seccomp")
        with pytest.raises(StepFailed, match="seccomp"):
            enter(context, (step,))
        assert context.missing == {}


def test_init_has_a_filter_of_its_own(slot: Slot) -> None:
    """Narrower than the worker's: the two count one filter each, and init's is the shorter program."""
    filters = [
        Path(f"/proc/{pid}/status").read_text().split("Seccomp_filters:")[1].split()[0]
        for pid in (slot.pid, slot.worker)
    ]
    assert filters[0] == filters[1] == "1"
    assert len(compile_filter("init")) < len(compile_filter("standard")) / 2


def test_libseccomp_is_in_no_slot(slot: Slot, shell_zygote: Any) -> None:
    """The list is compiled where no tenant can be: neither zygote nor init nor worker has the library."""
    for pid in (shell_zygote.process.pid, slot.pid, slot.worker):
        assert "libseccomp" not in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("which", ["filter", "init_filter"])
@pytest.mark.parametrize(
    "program", [b"\xff" * 64, b"\x06\x00\x00\x00\x00\x00\xff", bytes(8 * 5000)], ids=["nonsense", "torn", "endless"]
)
def test_a_broken_filter_is_no_slot(house: Any, shell_zygote: Any, which: str, program: bytes) -> None:
    """What the kernel does not take ends the build, and leaves no process and no descriptor behind."""
    folder = Path(f"/proc/{shell_zygote.process.pid}/fd")
    before = len(list(folder.iterdir()))

    answer, slot, build, *_ = house.order(shell_zygote, **{which: program})
    os.close(build)

    assert (answer["ok"], answer["step"]) == (False, "seccomp")
    assert not house.backend.populated(slot)
    house.backend.remove(slot)
    assert len(list(folder.iterdir())) == before


def test_a_filter_that_is_no_bytes_costs_the_connection(box: Any) -> None:
    """An order that is not even one is not tried."""
    zygote = box.start_zygote()
    _slot, build, *_ = box.begin(zygote, filter=5)
    os.close(build)
    assert seqpacket.recv_packet(zygote.sock) == (None, [])


def test_without_a_filter_the_wall_is_off(box: Any) -> None:
    """On a box without libseccomp a slot can be built, and says from outside what it lacks."""
    slot = box.spawn(box.start_zygote(), filter=b"", init_filter=b"")

    assert "libseccomp" in slot.answer["missing"]["seccomp"]
    off = {name: state for name, state in slot.walls().items() if state != "on"}
    assert off == {"seccomp": f"off: process {slot.pid} has no filter"}


def test_a_foreign_filter_is_not_taken_for_ours(box: Any) -> None:
    """What a unit puts around the zygote shows in every slot, and proves nothing."""
    slot = box.spawn(box.start_zygote(command=under_filter(listen=False)), filter=b"", init_filter=b"")

    assert slot.walls()["seccomp"] == "off: the worker did not prove it at its birth"


def test_a_filter_above_us_with_a_listener_costs_the_reports_only(box: Any) -> None:
    """There can be one listener in a line of filters: ours stands without, and unknown calls are still refused."""
    slot = box.spawn(box.start_zygote(command=under_filter(listen=True)))

    assert slot.walls() == dict.fromkeys(LAYERS, "on")
    assert slot.run(UNKNOWN + "result = unknown(434)") == "ENOSYS"
    assert slot.refused == []


def test_a_slot_has_more_filters_than_its_zygote(box: Any) -> None:
    """Read from outside: what is on the zygote as well does not count, whatever the worker is said to have proven."""
    zygote = box.start_zygote(command=under_filter(listen=False))
    bare = box.spawn(zygote, filter=b"", init_filter=b"")
    walled = box.spawn(zygote)

    wall = bare.walls(zygote=zygote.process.pid, proven=("landlock", "seccomp"))["seccomp"]
    assert wall == f"off: process {bare.pid} has no filter but its zygote's"
    assert walled.walls(zygote=zygote.process.pid) == dict.fromkeys(LAYERS, "on")


def under_filter(*, listen: bool) -> tuple[str, ...]:
    """The command of a zygote that runs under a filter which lets everything through."""
    source = f"""
import os, sys
from bedsit.sandbox.jail import libc
fd = libc.install_filter(bytes.fromhex("060000000000ff7f"), listen={listen})  # ret ALLOW
if fd is not None:
    os.set_inheritable(fd, True)
os.execv(sys.executable, [sys.executable, "-I", {str(PROGRAM)!r}, *sys.argv[1:]])
"""
    return ("-c", source, "SOCKET")


def test_what_nobody_needs_of_a_call_is_refused(slot: Slot) -> None:
    """Urgent bytes, programs on sockets, locks that inherit priority, merged pages, files spliced, POSIX timers.

    Beside each what workers do need.
    """
    numbers = {name: libseccomp.find_number(name) for name in ("futex", "sendfile", "copy_file_range", "timer_create")}
    found = slot.run(f"""
import ctypes, mmap, os, shutil, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if libc.syscall({numbers}[name], *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
def copy():
    with open("/tmp/a", "wb") as file:
        file.write(bytes(100_000))
    shutil.copyfile("/tmp/a", "/tmp/b")
    assert open("/tmp/b", "rb").read() == bytes(100_000)
here, there = socket.socketpair()
word = ctypes.c_uint32(0)
memory = mmap.mmap(-1, 1 << 16)
result = {{
    "urgent": [
        attempt(lambda: here.send(b"x", socket.MSG_OOB)),
        attempt(lambda: here.sendmsg([b"x"], [], socket.MSG_OOB)),
        attempt(lambda: there.recv(1, socket.MSG_OOB)),
        attempt(lambda: there.recvmsg(1, 0, socket.MSG_OOB)),
    ],
    "plain": [attempt(lambda: here.send(b"x", socket.MSG_NOSIGNAL)), attempt(lambda: there.recv(1))],
    "programs": [attempt(lambda: here.setsockopt(socket.SOL_SOCKET, n, bytes(16))) for n in (26, 50, 51, 52)],
    "options": attempt(lambda: here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)),
    "inheriting": [attempt(lambda: call("futex", ctypes.byref(word), op | 128, 0, None)) for op in (6, 7, 8, 13)],
    "wake": attempt(lambda: call("futex", ctypes.byref(word), 1 | 128, 1, None)),
    "merge": attempt(lambda: memory.madvise(12)),
    "drop": attempt(lambda: memory.madvise(mmap.MADV_DONTNEED)),
    "pages": [attempt(lambda: call("sendfile", 1, 0, None, 1)), attempt(lambda: os.copy_file_range(0, 1, 1))],
    "copy": attempt(copy),
    "timer": attempt(lambda: call("timer_create", 0, None, ctypes.byref(word))),
}}
""")
    no, none = "Operation not permitted", "Function not implemented"
    assert found == {
        "urgent": [no] * 4,
        "plain": ["ok", "ok"],
        "programs": [no] * 4,
        "options": "ok",
        "inheriting": [no] * 4,
        "wake": "ok",
        "merge": no,
        "drop": "ok",
        "pages": [none] * 2,
        "copy": "ok",
        "timer": none,
    }
    assert slot.refused == []


# -- profiles ----------------------------------------------------------------------------------------------------------

PROGRAMS = """
import os, subprocess
def own():
    with open("/tmp/own", "w") as file:
        file.write("#!/usr/bin/true")
    os.chmod("/tmp/own", 0o700)
    subprocess.run(["/tmp/own"], check=True)
def from_memory():
    fd = os.memfd_create("program")
    os.write(fd, open("/usr/bin/true", "rb").read())
    subprocess.run([f"/proc/self/fd/{fd}"], pass_fds=[fd], check=True)
def clone(flags):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    pid = libc.syscall(56, flags | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "")
    os.waitpid(pid, 0)
result = {
    "true": attempt(lambda: subprocess.run(["/usr/bin/true"], check=True)),
    "fork": attempt(lambda: os.waitpid(os.fork() or os._exit(0), 0)),
    "own": attempt(own),
    "memory": attempt(from_memory),
    "clone": attempt(lambda: clone(0)),
    "namespace": attempt(lambda: clone(0x10000000)),
}
"""


def test_the_standard_profile_has_no_processes(slot: Slot) -> None:
    """No child and no program, from wherever."""
    assert set(slot.run(PROGRAMS).values()) == {"Operation not permitted"}


def test_the_profile_subprocess_runs_what_the_box_has(spawn: Callable[..., Slot], shell_zygote: Any) -> None:
    """Children and the box's programs, no file of its own, no namespace. Every wall is up.

    Landlock does not look at memory without a name: a program in it runs, as any script does in the box's interpreters.
    """
    slot = spawn(shell_zygote, profile="subprocess")

    assert slot.walls() == dict.fromkeys(LAYERS, "on")
    assert slot.run(PROGRAMS) == {
        "true": "ok",
        "fork": "ok",
        "own": "Permission denied",
        "memory": "ok",
        "clone": "ok",
        "namespace": "Operation not permitted",
    }


def test_children_are_in_the_same_jail(spawn: Callable[..., Slot], shell_zygote: Any) -> None:
    """A program that a worker started has its filters, and its unknown calls are told as well."""
    slot = spawn(shell_zygote, profile="subprocess")
    program = "import ctypes; ctypes.CDLL(None).syscall(434, -1, 0); print(open('/proc/self/status').read())"
    found = slot.run(f"""
import os, subprocess, sys
listing = attempt(lambda: subprocess.run(["/usr/bin/ls", "/"], check=True, capture_output=True))
child = subprocess.run([sys.executable, "-I", "-c", {program!r}], capture_output=True, text=True)
result = [listing, [line for line in child.stdout.splitlines() if line.startswith(("Seccomp:", "NoNewPrivs"))]]
""")
    assert found == ["CalledProcessError", ["NoNewPrivs:\t1", "Seccomp:\t2"]]
    assert slot.refused == [PIDFD_OPEN]


def test_an_unknown_profile_is_no_order() -> None:
    """There is no third profile to be born with."""
    from bedsit.ipc.errors import BedsitError
    from bedsit.sandbox.spawn import read_order

    fields = {"slot": "s1", "run_dir": "/", "tmp_bytes": 1, "bundle_bytes": 1, "init_uid": 5}
    order = {**fields, "worker_uid": 6, "fds": ["listener", "build", "group"]}
    assert read_order(order | {"profile": "subprocess"}, [3, 4, 5])[0].profile == "subprocess"
    with pytest.raises(BedsitError, match="lacks"):
        read_order(order | {"profile": "none"}, [3, 4, 5])


# -- landlock ----------------------------------------------------------------------------------------------------------


def test_each_kernel_gets_the_rights_that_it_knows() -> None:
    """Asking for one that came later would be refused as a whole (landlock(7), the table of versions)."""
    assert [landlock.find_rights(abi).bit_count() for abi in range(1, 9)] == [13, 14, 15, 15, 16, 16, 16, 16]
    assert Right.REFER not in landlock.find_rights(1)
    assert landlock.find_rights(libc.landlock_abi()) & Right.EXECUTE


@pytest.mark.parametrize("abi", range(1, 8))
def test_an_older_kernel_gets_an_older_landlock(box: Any, abi: int) -> None:
    """The rules of every version are taken by this kernel, prove themselves, and let a worker live."""
    if abi > libc.landlock_abi():
        pytest.skip("no such landlock in this kernel")
    slot = box.spawn(box.start_zygote("--bad", f"landlock:{abi}"))

    assert slot.walls() == dict.fromkeys(LAYERS, "on")
    assert slot.run(
        "result = [attempt(lambda: open('/tmp/x', 'w')), attempt(lambda: open(__import__('os').__file__))]"
    ) == [
        "ok",
        "ok",
    ]


def test_landlock_refuses_what_the_mounts_show(box: Any) -> None:
    """A mount that should not be there is no use: what mounts alone would show, landlock does not."""
    source = """
import os
result = {
    "list": attempt(lambda: os.listdir("/")),
    "fifo": attempt(lambda: os.mkfifo("/tmp/fifo")),
    "link": attempt(lambda: os.symlink("/", "/tmp/link")),
    "moved": attempt(lambda: (os.mkdir("/tmp/a"), open("/tmp/b", "w").close(), os.rename("/tmp/b", "/tmp/a/b"))),
    "comm": attempt(lambda: open("/proc/self/comm", "w").write("x")),
    "null": attempt(lambda: open("/dev/null", "w").write("x")),
    "code": attempt(lambda: open(os.__file__).read()),
}
"""
    refused, allowed = "Permission denied", "ok"
    found = box.spawn(box.start_zygote("--without", "seccomp")).run(source)
    assert found == {
        "list": refused,
        "fifo": refused,
        "link": refused,
        "moved": allowed,
        "comm": refused,
        "null": allowed,
        "code": allowed,
    }
    found = box.spawn(box.start_zygote("--without", "seccomp,landlock")).run(source)
    assert set(found.values()) == {allowed}


def test_a_folder_that_is_gone_is_no_kernel_without_landlock(box: Any) -> None:
    """What cannot be granted ends the build: a slot without this wall would look like one on an old kernel."""
    answer, slot, build, *_ = box.order(box.start_zygote("--without", "trees"))
    os.close(build)

    assert (answer["ok"], answer["step"]) == (False, "landlock")
    assert "BadRules" in answer["message"]
    box.backend.remove(slot)


def test_a_kernel_without_landlock_is_said_to_lack_it(box: Any) -> None:
    """The slot is built, the answer says why, and the wall is off."""
    slot = box.spawn(box.start_zygote("--bad", "landlock:0"))

    assert "landlock" in slot.answer["missing"]
    assert slot.walls()["landlock"] == "off: the worker did not prove it at its birth"
    assert slot.run("result = 1") == 1
