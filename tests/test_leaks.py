"""The check that every test goes through finds each kind of leak, and nothing where nothing is."""

import mmap
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests_support import leaks
from tests_support.box import Box, wait_for_none


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Undoes what a test leaks on purpose."""
    with ExitStack() as stack:
        yield stack


def _leak_process(stack: ExitStack) -> str:
    child = subprocess.Popen(["sleep", "60"])
    stack.callback(child.wait)
    stack.callback(child.kill)
    return f"process {child.pid} (sleep 60)"


def _leak_orphan(stack: ExitStack) -> str:
    shell = subprocess.run(
        ["setsid", "sh", "-c", "sleep 60 >&- & echo $!"], stdout=subprocess.PIPE, text=True, check=True
    )
    pid = int(shell.stdout)
    stack.callback(os.kill, pid, signal.SIGKILL)
    return f"process {pid} (sleep 60)"


def _leak_descriptor(stack: ExitStack) -> str:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - that it stays open is the point
    stack.callback(file.close)
    return f"descriptor {file.name}"


def _leak_memfd(stack: ExitStack) -> str:
    fd = os.memfd_create("forgotten")
    os.ftruncate(fd, 4096)
    mapping = mmap.mmap(fd, 4096)
    os.close(fd)
    stack.callback(mapping.close)
    return "memfd /memfd:forgotten (deleted)"


def _leak_cgroup(stack: ExitStack) -> str:
    top = next(path for path in map(Path, ("/sys/fs/cgroup/pids", "/sys/fs/cgroup")) if path.is_dir())
    folder = top / f"bedsit-{os.environ[leaks.MARK]}"
    folder.mkdir()
    stack.callback(folder.rmdir)
    return f"cgroup {folder}"


def _leak_socket(stack: ExitStack) -> str:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"bedsit-{os.getpid()}-"))
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(f"{folder}/s")
    return f"socket {folder}/s"


def _leak_mount(stack: ExitStack) -> str:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    stack.callback(subprocess.run, ["umount", folder], check=True)
    return f"mount {folder}"


@pytest.mark.parametrize(
    "leak", [_leak_process, _leak_orphan, _leak_descriptor, _leak_memfd, _leak_cgroup, _leak_socket, _leak_mount]
)
def test_leak_is_found(stack: ExitStack, leak: Callable[[ExitStack], str]) -> None:
    """What was left behind is named."""
    before = leaks.take_snapshot()

    assert leak(stack) in leaks.find_leaks(before, within_s=0)


def test_no_leak_is_found_where_there_is_none(stack: ExitStack) -> None:
    """Two snapshots in a row do not differ."""
    assert leaks.find_leaks(leaks.take_snapshot(), within_s=0) == []


def test_a_box_leaves_nothing_behind(box: Box) -> None:
    """A whole bedsit is found while it is there, and is gone after its own ``down``."""
    found = box.find_leftovers()
    kinds = {word.split()[0] for word in found}

    box.read("down")

    assert kinds == {"process", "cgroup", "socket"}
    assert wait_for_none(box.find_leftovers) == []
