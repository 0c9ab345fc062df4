"""``bedsit up`` before anything starts: what it refuses, and the parts it is made of."""

import fcntl
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedsit.cli.backoff import Backoff
from bedsit.cli.down import await_keeper
from bedsit.cli.logfile import LIMIT_BYTES, LogFile, describe_line
from bedsit.cli.render import Screen
from bedsit.cli.report import PipeReport, hear_report
from bedsit.ipc.admin import Phase
from bedsit.ipc.errors import BedsitError, error

Run = Callable[..., Any]


def test_without_root_it_says_what_is_missing(run_dir: Path) -> None:
    """Exit 5, one line what and one line what to do."""
    # An ambient CAP_DAC_READ_SEARCH lets another user read an interpreter that lies in root's home.
    drop = [
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]
    done = subprocess.run(
        [*drop, sys.executable, "-m", "bedsit.cli.main", "up", "--run-dir", str(run_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("error: permission.denied: bedsit up needs root")
    assert "hint: " in done.stderr


def test_a_run_directory_that_cannot_be_made_is_refused(bedsit: Run, tmp_path: Path) -> None:
    """Something is in the way."""
    (tmp_path / "file").write_text("")
    done = bedsit("up", "--run-dir", str(tmp_path / "file" / "run"))
    assert done.returncode == 5
    assert "cannot write to the run directory" in done.stderr
    assert "--run-dir" in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("uid", [0, 65534])
def test_descriptors_are_as_many_as_the_units_have(uid: int) -> None:
    """Whatever the shell's limits are; who may not raise them has what there is."""
    code = (
        "import os, resource, sys\n"
        "from bedsit.cli.up import _raise_descriptor_limit as lift\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
        "os.setuid(int(sys.argv[1]))\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "lift()\n"
        "print(int(status['CapEff'], 16) >> 24 & 1, *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(uid)], capture_output=True, text=True, check=True)
    may, soft, hard = map(int, done.stdout.split())  # CAP_SYS_RESOURCE, which root in a container often lacks
    assert soft == hard == (1 << 20 if may else 256)
    assert uid == 0 or not may


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_a_second_keeper_of_the_same_directory_is_refused(bedsit: Run, run_dir: Path, detach: tuple[str, ...]) -> None:
    """The kernel's lock decides, not a pid file; the pid is only for the message."""
    fd = os.open(run_dir / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(fd, b"4242\n")
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = bedsit("up", *detach)
    finally:
        os.close(fd)
    assert done.returncode == 6
    assert "another bedsit up (pid 4242)" in done.stderr


def test_down_waits_for_the_keeper(run_dir: Path) -> None:
    """When it returns, the next ``bedsit up`` can have the lock: the keeper was the last to go."""
    holder = subprocess.Popen(
        ["flock", str(run_dir / "up.lock"), "sh", "-c", "echo; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline()
        waiting = threading.Thread(target=await_keeper, args=(run_dir / "up.lock",))
        waiting.start()
        assert waiting.is_alive()
        holder.stdin.close()
        waiting.join(30)
        assert not waiting.is_alive()


def test_a_daemon_with_another_state_directory_is_not_taken_over(bedsit: Run, run_dir: Path, daemon: Any) -> None:
    """It serves other tenants than were asked for."""
    daemon.script["status"] = {"state_dir": "/elsewhere"}
    done = bedsit("up", "--state-dir", str(run_dir.parent / "state"))
    assert done.returncode == 6
    assert "with the state in /elsewhere" in done.stderr


def test_restarts_wait_longer_and_longer_until_a_life_was_long() -> None:
    """At once, 0.1 s doubled up to 5 s, and from the beginning after ten good seconds."""
    backoff = Backoff()
    assert [backoff.next_delay(1) for _ in range(9)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert backoff.next_delay(10) == 0
    assert backoff.next_delay(1) == 0.1


def test_a_log_is_bounded(tmp_path: Path) -> None:
    """Over the limit it is emptied under its writer, keeping one predecessor; what comes then is still read."""
    log = LogFile(tmp_path / "logs" / "x.log")
    writer = os.open(log.path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(writer, b"early\n")
        assert log.read_new() == ["early"]
        os.write(writer, b"x" * LIMIT_BYTES)
        assert log.rotate()
        os.write(writer, b"late\n")
        assert log.read_new() == ["late"]
        assert not log.rotate()
        assert log.path.with_suffix(".log.1").stat().st_size == LIMIT_BYTES
    finally:
        os.close(writer)
        log.close()


def test_last_words_are_those_since_the_start(tmp_path: Path) -> None:
    """What an earlier process wrote is not blamed on this one."""
    log = LogFile(tmp_path / "logs" / "x.log")
    os.write(log.fd, b"from before\n")
    since = log.mark()
    assert log.last_lines(since, 5) == []
    os.write(log.fd, b'{"event": "died", "level": "error", "timestamp": "2026-01-02T03:04:05Z", "why": "x"}\nplain\n')
    assert log.last_lines(since, 5) == ["03:04:05 error died why=x", "plain"]
    log.close()


@pytest.mark.parametrize("line", ["not json", "[1]", '{"no": "event"}', "{" * 100])
def test_a_line_that_is_no_log_entry_stays_as_it_is(line: str) -> None:
    """A traceback is a traceback."""
    assert describe_line(line) == line


def test_the_waiting_parent_hears_phases_and_readiness() -> None:
    """Through the pipe, in order; then the keeper hangs up."""
    read_fd, write_fd = os.pipe()
    report = PipeReport(write_fd, Screen(err=io.StringIO()))
    report.phase(Phase("daemon answers", None))
    report.phase(Phase("daemon answers", 5.0))
    report.ready("up in 1 s")
    report.phase(Phase("later", None))
    heard: list[Phase] = []
    assert hear_report(read_fd, heard.append) == "up in 1 s"
    assert heard == [Phase("daemon answers", None), Phase("daemon answers", 5.0)]


def test_the_waiting_parent_hears_a_failure_with_its_exit_code() -> None:
    """What the keeper could not do is what the parent says and exits with."""
    read_fd, write_fd = os.pipe()
    PipeReport(write_fd, Screen(err=io.StringIO())).fail(error("config.invalid", "bad key"), 78)
    with pytest.raises(BedsitError, match="bad key") as caught:
        hear_report(read_fd, lambda _: None)
    assert caught.value.detail["exit_code"] == 78


def test_a_keeper_that_dies_silently_is_an_error() -> None:
    """The parent does not wait for ever, and does not take silence for success."""
    read_fd, write_fd = os.pipe()
    os.close(write_fd)
    with pytest.raises(BedsitError, match="ended before it said why"):
        hear_report(read_fd, lambda _: None)
