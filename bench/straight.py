"""A floor for births: what the zygote does for a slot, as one straight function of plain calls.

No step table, no context, no reports, no timing of single steps, no second look at anything; the cgroup, the folders
and the filters are there before it begins. It forks from a process that is as warm as a zygote, because a fork costs
what there is to copy: that preparation, which is not measured, is all that is used of bedsit.

    python -m bench.straight FD     serves births over the socket FD, for `bench.births.Line`
"""

import contextlib
import ctypes
import errno
import gc
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import setproctitle

_PACKET: Final = 256 << 10
_C: Final = ctypes.PyDLL(None, use_errno=True)
_C.syscall.restype = ctypes.c_long
_CLONE3, _LANDLOCK, _MOUNT_SETATTR, _SECCOMP, _KEYCTL = 435, 444, 442, 317, 250  # x86_64
_RUN_DIR, _DEVICES = "/run/slot", ("null", "zero", "full", "random", "urandom")
_LINKS: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC: Final = {"passwd": 60, "group": 20, "nsswitch.conf": 50, "hosts": 30}
_READ, _WRITE, _OWN, _ALL = 0b1100, 0b1110 | 1 << 14, 0b1110_1011_1110 & ~0b1000_0000_0000 | 1 << 13 | 1 << 14, 0xFFFF
_BIND, _REC, _PRIVATE, _NOSUID, _NODEV, _NOEXEC, _RDONLY, _REMOUNT = 4096, 16384, 1 << 18, 2, 4, 8, 1, 32

Order = Mapping[str, Any]


def _serve(sock: socket.socket) -> None:
    zygote = __import__("bedsit.sandbox.zygote", fromlist=["warm_up"])
    zygote.warm_up()
    setproctitle.setproctitle("straight line")
    house = {"trees": zygote.trees.find_trees(), "samples": zygote.trees.find_samples()}
    zygote.libc.load()
    gc.collect()
    gc.freeze()
    zygote.pages.collapse()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sock.send(b"{}")
    while True:
        text, fds, _, _ = socket.recv_fds(sock, _PACKET, 16)
        if not text:
            return
        answer = _bear({**house, **json.loads(text)}, fds)
        for fd in fds:
            os.close(fd)
        sock.send(json.dumps(answer).encode())


def _bear(order: Order, fds: list[int]) -> dict[str, Any]:
    began = time.perf_counter()
    if len(os.listdir("/proc/self/task")) != 1:
        return {"error": "threads"}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pidfd = ctypes.c_int(-1)
    into = order["into_group"]
    # CLONE_NEWPID, CLONE_PIDFD, CLONE_INTO_CGROUP
    flags = 0x2000_0000 | 0x1000 | (0x2_0000_0000 if into else 0)
    fields = (flags, ctypes.addressof(pidfd), 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, fds[2] if into else 0)
    arguments = ctypes.create_string_buffer(struct.pack("=11Q", *fields))
    ctypes.pythonapi.PyOS_BeforeFork()
    called = time.perf_counter()
    pid = _C.syscall(ctypes.c_long(_CLONE3), arguments, ctypes.c_long(88))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        try:
            ours.close()
            _become_slot(order, fds, theirs)
        except BaseException as e:  # noqa: BLE001  whatever it is, the parent says so
            with contextlib.suppress(OSError):
                theirs.send(f"{type(e).__name__}: {e}".encode())
        finally:
            os._exit(70)
    clone_ms = (time.perf_counter() - called) * 1e3
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    theirs.close()
    answer = _answer(order, pid, ours)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    ours.close()
    os.close(pidfd.value)
    return answer or {"pid": pid, "clone_ms": clone_ms, "ms": (time.perf_counter() - began) * 1e3}


def _answer(order: Order, pid: int, ours: socket.socket) -> dict[str, Any] | None:
    up = 0
    while select.select([ours], [], [], 10)[0] and (said := ours.recv(1000)):
        if said == b"map":
            for name, text in (("setgroups", "deny"), ("gid_map", order["map"]), ("uid_map", order["map"])):
                _put(f"/proc/{pid}/{name}", text)
            ours.send(b"go")
        elif said == b"up":
            up += 1
        else:
            return {"error": said.decode()}
    return None if up == 2 else {"error": f"{up} of two processes came up"}


def _become_slot(order: Order, fds: list[int], report: socket.socket) -> None:
    os.umask(0o022)
    listener, build, _, *joins = fds
    for fd in joins:
        os.write(fd, b"0")
    _put("/proc/self/oom_score_adj", "900")
    os.setsid()
    _check(_C.unshare(0x0002_0000))
    _mount("none", "/", None, _REC | _PRIVATE)
    _check(_C.unshare(0x4000_0000))
    _check(_C.unshare(0x0800_0000))
    _check(_C.unshare(0x0400_0000))
    socket.sethostname("slot")
    _check(_C.unshare(0x0200_0000))
    _close_all_but(0, 1, 2, listener, build, report.fileno())
    sysctl = os.open("/proc/sys", os.O_PATH | os.O_DIRECTORY)
    _make_root(order)
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    _check(_C.syscall(ctypes.c_long(_KEYCTL), ctypes.c_long(1), None))
    os.setgroups([])
    _check(_C.unshare(0x1000_0000))
    report.send(b"map")
    report.recv(10)
    limit = os.open("user/max_user_namespaces", os.O_WRONLY, dir_fd=sysctl)
    os.write(limit, b"0")
    os.close(limit)
    os.close(sysctl)
    capability = 0
    while _C.prctl(24, capability, 0, 0, 0) == 0:
        capability += 1
    _check(_C.prctl(28, 0b1110_1111, 0, 0, 0))
    _split(order, report)


def _make_root(order: Order) -> None:
    root = order["staging"]
    _mount("bedsit", root, "tmpfs", _NOSUID | _NODEV, "size=1048576,mode=0755")
    os.mkdir(root + "/etc")
    for name, size in _ETC.items():
        _put(f"{root}/etc/{name}", "#" * size)
    _put(f"{root}/etc/ld.so.cache", "")
    _bind("/etc/ld.so.cache", f"{root}/etc/ld.so.cache")
    os.mkdir(root + "/dev")
    for name in _DEVICES:
        _put(f"{root}/dev/{name}", "")
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _BIND)
    for path, size, inodes in (("/tmp", 64 << 20, 4096), ("/dev/shm", 64 << 20, 4096), ("/bundle", 2 << 30, 65536)):
        os.mkdir(root + path)
        owner = f"uid={order['worker_uid']},gid={order['worker_uid']},mode=0700"
        _mount("bedsit", root + path, "tmpfs", _NOSUID | _NODEV | _NOEXEC, f"size={size},nr_inodes={inodes},{owner}")
    for tree in order["trees"]:
        os.makedirs(root + tree)
        _bind(tree, root + tree)
    for link in _LINKS:
        if os.path.islink(link):
            os.symlink(os.readlink(link), root + link)
        elif os.path.isdir(link):
            os.mkdir(root + link)
            _bind(link, root + link)
    os.makedirs(root + _RUN_DIR)
    _bind(order["run_dir"], root + _RUN_DIR)
    os.mkdir(root + "/proc")
    _mount("proc", root + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC, "subset=pid,hidepid=invisible")
    os.chdir(root)
    _check(_C.pivot_root(b".", b"."))
    _check(_C.umount2(b".", 2))
    os.chdir("/")
    _mount("none", "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)


def _split(order: Order, report: socket.socket) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _, out_write = os.pipe()
    _, err_write = os.pipe()
    if os.fork():
        for fd in (theirs.fileno(), out_write, err_write):
            os.close(fd)
        _drop(order, 1000)
        _check(_C.prctl(4, 0, 0, 0, 0))
        _finish(order, "init")
        _landlock(order["trees"], {})
        socket.recv_fds(ours, 10, 1)
        _filter(bytes.fromhex(order["init_filter"]), listen=False)
        report.send(b"up")
        report.close()
        ours.recv(1)  # until its group is killed; what it holds open, a real init would serve
    os.dup2(out_write, 1)
    os.dup2(err_write, 2)
    _close_all_but(0, 1, 2, theirs.fileno(), report.fileno())
    _drop(order, 1001)
    _check(_C.prctl(1, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != 1:
        return
    _check(_C.prctl(4, 1, 0, 0, 0))
    _finish(order, "worker")
    random.seed()
    sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)
    sys.modules["numpy.random"].seed()
    sys.modules["torch"].default_generator.seed()
    _landlock(order["trees"], {"/proc": _READ, "/dev": _WRITE, "/tmp": _OWN, "/dev/shm": _OWN, "/bundle": _OWN})
    notify = _filter(bytes.fromhex(order["filter"]), listen=True)
    socket.send_fds(theirs, [b"x"], [notify])
    os.close(notify)
    _look(order["samples"])
    report.send(b"up")
    report.close()
    theirs.recv(1)


def _drop(order: Order, own: int) -> None:
    for which, value in order["rlimits"]:
        resource.setrlimit(which, (value, value))
    os.setresgid(own, own, own)
    os.setresuid(own, own, own)
    _check(_C.capset(struct.pack("=Ii", 0x2008_0522, 0), bytes(24)))


def _finish(order: Order, role: str) -> None:
    _check(_C.prctl(38, 1, 0, 0, 0))
    setproctitle.setproctitle(f"straight: {role} {order['slot']}")
    os.environ.clear()
    os.environ.update({"HOME": "/tmp", "USER": "worker", "PATH": "/usr/bin", "LANG": "C.UTF-8"})
    os.umask(0o077)


def _landlock(trees: Sequence[str], more: Mapping[str, int]) -> None:
    ruleset = _C.syscall(ctypes.c_long(_LANDLOCK), struct.pack("=3Q", _ALL, 3, 3), ctypes.c_long(24), ctypes.c_long(0))
    _check(ruleset)
    folders = [link for link in _LINKS if os.path.isdir(link) and not os.path.islink(link)]
    for path, rights in {**dict.fromkeys((*trees, *folders, "/etc", "/run"), _READ), **more}.items():
        fd = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", rights, fd)
        _check(_C.syscall(ctypes.c_long(_LANDLOCK + 1), ctypes.c_long(ruleset), ctypes.c_long(1), rule, 0))
        os.close(fd)
    _check(_C.syscall(ctypes.c_long(_LANDLOCK + 2), ctypes.c_long(ruleset), ctypes.c_long(0)))
    os.close(ruleset)


def _filter(program: bytes, *, listen: bool) -> int:
    kept = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(kept))
    fd = _C.syscall(ctypes.c_long(_SECCOMP), ctypes.c_long(1), ctypes.c_long(8 if listen else 0), described)
    _check(fd)
    return int(fd)


def _look(samples: Sequence[str]) -> None:
    status = Path("/proc/self/status").read_text()
    assert status.count("0000000000000000") >= 5
    assert {*os.getresuid(), *os.getresgid()} == {1001}
    assert not os.getgroups()
    assert "NoNewPrivs:\t1" in status
    assert len(os.listdir("/proc/self/fd")) == 6
    assert all(os.access(path, os.R_OK) for path in samples)
    with contextlib.suppress(PermissionError):
        os.listdir("/")
        raise AssertionError("landlock")
    assert _C.listxattr(None, None, 0) < 0
    assert ctypes.get_errno() == errno.EOPNOTSUPP


def _put(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, text.encode())
    os.close(fd)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = (source.encode(), target.encode(), kind and kind.encode())
    _check(_C.mount(*words, ctypes.c_ulong(flags), options and options.encode()))


def _bind(source: str, target: str) -> None:
    _mount(source, target, None, _BIND | _REC)
    attributes = struct.pack("=4Q", 7, 0, 0, 0)
    call = (ctypes.c_long(_MOUNT_SETATTR), ctypes.c_long(-100), target.encode(), ctypes.c_long(0x8000), attributes)
    _check(_C.syscall(*call, ctypes.c_long(32)))


def _close_all_but(*keep: int) -> None:
    low = 0
    for fd in (*sorted(keep), 1 << 30):
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
