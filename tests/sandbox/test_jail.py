"""What hostile code finds in a slot. Each refused attempt has a harmless twin that must succeed in the same slot.

Where seccomp or landlock would answer first, the slot is one without these two: its own walls are what is shown here.
"""

from typing import Any

import pytest

from bedsit.sandbox.inspect import LAYERS, REQUIRED_LAYERS
from bedsit.sandbox.trees import find_trees


def test_all_walls_stand(slot: Any) -> None:
    """Seen from outside, every layer is on."""
    assert slot.walls() == dict.fromkeys(LAYERS, "on")
    assert set(LAYERS) >= REQUIRED_LAYERS


def test_nothing_is_missing(slot: Any) -> None:
    """On this box no optional step was refused, and every step of every role was timed."""
    assert slot.answer["missing"] == {}
    assert {"fork", "pivot", "self_check", "no_trace", "total"} <= set(slot.answer["steps_ms"])


def test_no_other_process_is_visible(slot: Any) -> None:
    """/proc has the worker itself and nobody else: not its init, not the box's processes."""
    found = slot.run("""
import os
result = {
    "pids": [name for name in os.listdir("/proc") if name.isdigit()],
    "self": str(os.getpid()),
    "init": attempt(lambda: open("/proc/1/environ", "rb")),
    "own": attempt(lambda: open("/proc/self/environ", "rb").read()),
    "kernel": attempt(lambda: open("/proc/kallsyms")),
    "cmdline": attempt(lambda: open("/proc/cmdline")),
}
""")
    assert found["pids"] == [found["self"]]
    assert found["init"] == found["kernel"] == found["cmdline"] == "No such file or directory"
    assert found["own"] == "ok"


def test_others_cannot_be_signalled_or_traced(unfiltered: Any) -> None:
    """Init is another user; everybody else does not exist."""
    found = unfiltered.run(f"""
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
def trace():
    if libc.ptrace(16, 1, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
child = os.fork()
if child == 0:
    signal.pause()
result = {{
    "init": attempt(lambda: os.kill(1, 9)),
    "trace": attempt(trace),
    "box": attempt(lambda: os.kill({unfiltered.pid}, 9)),
    "own": attempt(lambda: os.kill(child, 9)),
}}
""")
    assert found == {
        "init": "Operation not permitted",
        "trace": "Operation not permitted",
        "box": "No such process",
        "own": "ok",
    }


def test_there_is_no_network(unfiltered: Any) -> None:
    """Only a loopback that is down; a socket pair inside works."""
    found = unfiltered.run("""
import socket
def connect(address):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(5)
        s.connect(address)
result = {
    "loopback": attempt(lambda: connect(("127.0.0.1", 80))),
    "world": attempt(lambda: connect(("192.0.2.1", 80))),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "pair": attempt(lambda: socket.socketpair()[0].close()),
}
""")
    assert found["loopback"] == found["world"] == "Network is unreachable"
    assert found["interfaces"] == ["lo"]
    assert found["pair"] == "ok"


def test_abstract_sockets_of_the_box_are_out_of_reach(slot: Any) -> None:
    """An abstract socket belongs to a network namespace; one of the slot's own can be reached."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0bedsit-test-{slot.id}")
        listener.listen(1)
        found = slot.run("""
import socket
def connect(name):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(name)
own = socket.socket(socket.AF_UNIX)
own.bind("\\0own")
own.listen(1)
result = [attempt(lambda: connect("\\0bedsit-test-" + slot)), attempt(lambda: connect("\\0own"))]
""")
    assert found == ["Connection refused", "ok"]


def test_only_scratch_is_writable(unfiltered: Any) -> None:
    """Of all folders that can be found, these three take a file."""
    found = unfiltered.run("""
import os
writable = []
for folder, folders, _ in os.walk("/"):
    if folder.startswith("/proc"):
        folders[:] = []
        continue
    if folder.count("/") > 5:
        folders[:] = []
    try:
        open(folder + "/bedsit-test", "w").close()
        os.unlink(folder + "/bedsit-test")
        writable.append(folder)
    except OSError:
        pass
result = {"writable": sorted(writable), "usr": attempt(lambda: open("/usr/x", "w")),
          "code": attempt(lambda: open(os.__file__, "a")), "read": attempt(lambda: open(os.__file__).read())}
""")
    assert found["writable"] == ["/bundle", "/dev/shm", "/tmp"]
    assert found["usr"] == "Read-only file system"
    assert found["code"] == "Permission denied"  # the file's owner is the first wall here
    assert found["read"] == "ok"


def test_the_box_is_not_there(unfiltered: Any) -> None:
    """No home, no state, no password file, no other slot; the slot's own folder is."""
    found = unfiltered.run("""
import os
result = {
    "root": sorted(os.listdir("/")),
    "etc": sorted(os.listdir("/etc")),
    "passwd": open("/etc/passwd").read().count("\\n"),
    "run": os.listdir("/run"),
    "slot": attempt(lambda: os.listdir("/run/slot")),
    "shadow": attempt(lambda: open("/etc/shadow")),
    "sys": attempt(lambda: os.listdir("/sys")),
}
""")
    leading = {tree.split("/")[1] for tree in find_trees()}  # Python and bedsit may live anywhere
    assert set(found["root"]) <= {"bin", "lib", "lib32", "lib64", "libx32", "sbin"} | leading | {
        *("bundle", "dev", "etc", "proc", "run", "tmp", "usr"),
    }
    # Debian's Python has a module of its own there.
    own = {tree.split("/")[2] for tree in find_trees() if tree.startswith("/etc/")}
    assert set(found["etc"]) <= {"group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd"} | own
    assert found["passwd"] == 1
    assert found["run"] == ["slot"]
    assert found["slot"] == "ok"
    assert found["shadow"] == found["sys"] == "No such file or directory"


def test_devices_are_the_harmless_five(slot: Any) -> None:
    """A node that is not there cannot be made either; /dev/null works."""
    found = slot.run("""
import os
result = {
    "dev": sorted(os.listdir("/dev")),
    "mknod": attempt(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))),
    "null": attempt(lambda: open("/dev/null", "w").write("x")),
    "random": len(open("/dev/urandom", "rb").read(8)),
}
""")
    assert found == {
        "dev": ["full", "null", "random", "shm", "urandom", "zero"],
        "mknod": "Operation not permitted",
        "null": "ok",
        "random": 8,
    }


def test_scratch_is_bounded_and_not_executable(unfiltered: Any) -> None:
    """Bytes and files end; a program written there does not run, one of the system's does."""
    found = unfiltered.run("""
import os, subprocess
def fill(path, size):
    with open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
def litter():
    for number in range(5000):
        open(f"/dev/shm/{number}", "w").close()
def program():
    os.unlink("/bundle/big")
    with open("/bundle/run", "w") as file:
        file.write("#!/usr/bin/env true")
    os.chmod("/bundle/run", 0o700)
    subprocess.run(["/bundle/run"], check=True)
result = {
    "small": attempt(lambda: fill("/tmp/small", 4 << 20)),
    "big": attempt(lambda: fill("/tmp/big", 64 << 20)),
    "bundle": attempt(lambda: fill("/bundle/big", 64 << 20)),
    "files": attempt(litter),
    "program": attempt(program),
    "true": attempt(lambda: subprocess.run(["/usr/bin/true"], check=True)),
}
""")
    assert found == {
        "small": "ok",
        "big": "No space left on device",
        "bundle": "No space left on device",
        "files": "No space left on device",
        "program": "Permission denied",
        "true": "ok",
    }


def test_the_worker_is_nobody(unfiltered: Any) -> None:
    """Its own two ids, no group, no capability, no way to any other id; inside it is user 1001."""
    found = unfiltered.run("""
import os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
result = {
    "ids": [*os.getresuid(), *os.getresgid()],
    "groups": os.getgroups(),
    "caps": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "root": attempt(lambda: os.setuid(0)),
    "init": attempt(lambda: os.setuid(1000)),
    "chroot": attempt(lambda: os.chroot("/tmp")),
    "oom": attempt(lambda: open("/proc/self/oom_score_adj", "wb", 0).write(b"-1000")),
    "own": attempt(lambda: os.setuid(1001)),
    "map": open("/proc/self/uid_map").read().split(),
}
""")
    assert found["ids"] == [1001] * 6
    assert found["groups"] == []
    assert set(found["caps"]) == {"0" * 16}
    assert found["root"] == "Invalid argument"
    assert found["init"] == found["chroot"] == "Operation not permitted"
    assert found["oom"] == "Permission denied"
    assert found["own"] == "ok"
    uids = unfiltered.expected
    assert found["map"] == ["1000", str(uids.init_uid), "1", "1001", str(uids.worker_uid), "1"]


def test_namespaces_cannot_be_joined_or_used_to_mount(unfiltered: Any) -> None:
    """Mounting, unmounting and naming need what the worker lacks."""
    found = unfiltered.run("""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
result = [
    attempt(lambda: call(libc.mount, b"none", b"/tmp", b"tmpfs", 0, None)),
    attempt(lambda: call(libc.umount2, b"/proc", 2)),
    attempt(lambda: call(libc.unshare, 0x20000)),
    attempt(lambda: call(libc.sethostname, b"box", 3)),
]
""")
    assert found == ["Operation not permitted"] * 4


def test_there_is_no_way_to_new_capabilities(unfiltered: Any) -> None:
    """No nested user namespace, where a worker would hold them all; a namespace-free fork works."""
    found = unfiltered.run("""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def unshare(flags):
    if libc.unshare(flags) < 0:
        raise OSError(ctypes.get_errno(), "")
def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
result = [attempt(lambda: unshare(0x10000000)), attempt(lambda: unshare(0x10000000 | 0x40000000)), attempt(fork)]
""")
    assert found == ["No space left on device", "No space left on device", "ok"]


def test_the_boxs_keys_are_not_inherited(unfiltered: Any) -> None:
    """The session keyring is new and empty: nothing can be found in it that was in the one of whoever started us."""
    found = unfiltered.run("""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
KEYCTL, READ, SESSION = 250, 11, -3
result = libc.syscall(KEYCTL, READ, ctypes.c_long(SESSION), None, 0)
""")
    assert found in (0, -1)


def test_limits_are_not_raised(slot: Any) -> None:
    """Hard limits hold; lowering one is fine."""
    found = slot.run("""
import os, resource
def opens():
    for _ in range(2000):
        os.dup(1)
def raises():
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
def huge():
    fd = os.memfd_create("x")
    os.ftruncate(fd, 2 << 30)
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
result = [
    attempt(raises), attempt(huge), attempt(opens), attempt(lambda: os.nice(-5)),
    attempt(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))),
]
""")
    assert found == ["ValueError", "File too large", "Too many open files", "Operation not permitted", "ok"]


def test_environment_and_name(slot: Any) -> None:
    """Four variables, the same in every slot; no word of the box."""
    found = slot.run("""
import os, socket
result = {
    "environ": dict(os.environ),
    "exec": open("/proc/self/environ").read(),
    "host": socket.gethostname(),
    "cgroup": sorted({line.split(":")[2] for line in open("/proc/self/cgroup").read().splitlines()}),
    "cwd": os.getcwd(),
}
""")
    assert found["environ"] == {"HOME": "/tmp", "USER": "worker", "PATH": "/usr/bin", "LANG": "C.UTF-8"}
    assert "NUM_THREADS" not in found["exec"]
    assert found["host"] == "slot"
    assert found["cwd"] == "/"
    assert "/" in found["cgroup"]


def test_siblings_draw_different_numbers(spawn: Any, shell_zygote: Any) -> None:
    """Each slot is reseeded after the fork."""
    drawn = [spawn(shell_zygote).run("import random; result = random.random()") for _ in range(3)]
    assert len(set(drawn)) == 3


def test_sockets_made_later_are_seen_and_cannot_be_replaced(house: Any, slot: Any) -> None:
    """The router makes its sockets after the slot is up, and again after a restart: so the folder is bound."""
    import socket

    folder = house.folder / "slots" / slot.id
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "fd.sock"))
        (folder / "fd.sock").chmod(0o666)
        listener.listen(1)
        found = slot.run("""
import os, socket
def connect():
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect("/run/slot/fd.sock")
result = [attempt(connect), attempt(lambda: os.unlink("/run/slot/fd.sock")), attempt(lambda: open("/run/slot/x", "w"))]
""")
    assert found == ["ok", "Read-only file system", "Read-only file system"]


def test_artifacts_arrive_read_only(slot: Any, tmp_path: Any) -> None:
    """A descriptor of a file reaches the worker, which cannot write through it, nor reopen it for writing."""
    import os

    path = tmp_path / "artifact"
    path.write_bytes(b"weights")
    path.chmod(0o400)
    fd = os.open(path, os.O_RDONLY)
    found = slot.run(
        """
import os
result = [os.read(fds[0], 99).decode(), attempt(lambda: os.write(fds[0], b"x")),
          attempt(lambda: os.open(f"/proc/self/fd/{fds[0]}", os.O_RDWR))]
""",
        (fd,),
    )
    os.close(fd)
    assert found == ["weights", "Bad file descriptor", "Permission denied"]
    assert slot.walls(blank=False)["closed_descriptors"] == "on"


@pytest.mark.parametrize("word", ["init", "worker"])
def test_processes_have_names(slot: Any, word: str) -> None:
    """`ps` says what is what."""
    pid = slot.pid if word == "init" else slot.worker
    from pathlib import Path

    assert f"bedsit: {word} {slot.id}" in Path(f"/proc/{pid}/cmdline").read_text()
