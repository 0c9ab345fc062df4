"""Attempts on who reads logs: steer the terminal, forge lines, fill the disk, keep init and daemon busy."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bedsit.ipc import seqpacket
from bedsit.sandbox.output import MAX_LINE
from bedsit.supervisor.tenantlogs import read_lines
from tests_support.attempts import Ground, attempt
from tests_support.slots import Slot, receive

LOG_BYTES = 1 << 20
STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (out|err) [^\x00-\x1f\x7f-\x9f]*")
STEERING = {
    "title": b"\x1b]0;pwned\x07",
    "clear": b"\x1b[2J\x1b[H",
    "eight bits": b"\xc2\x9b31m",
    "overwrite": b"done\r2026-01-01T00:00:00.000Z err all is well",
    "backspace": b"rm\x08\x08ls",
    "new lines of other kinds": b"a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e\xe2\x80\xa9f",
    "other direction": b"user\xe2\x80\xaetxt.exe",
    "hidden": b"a\xe2\x80\x8bb\xef\xbb\xbfc\xf3\xa0\x81\xa5d",
    "zero": b"before\x00after",
    "broken UTF-8": b"\xff\xfe\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80",
    "half a character": b"\xf0\x9f\x98",
}
FORGED = b"first\n2026-01-01T00:00:00.000Z err forged\nlast"


@contextlib.contextmanager
def logged(ground: Ground, *options: str, **order: str) -> Iterator[tuple[Slot, list[int]]]:
    """A slot, and the two files that its init will keep its output in."""
    logs = [os.memfd_create("log") for _ in range(2)]
    try:
        with ground.slot(*options, **order) as slot:
            yield slot, logs
    finally:
        seqpacket.close_all(logs)


def say(slot: Slot, logs: list[int], source: str, log_bytes: int = LOG_BYTES) -> int:
    """Let the worker run *source* and end; gives its wait status."""
    with slot.connect() as sock:
        message = {"op": "assign", "body": source.encode(), "log_bytes": log_bytes, "fds": ["log", "log"]}
        seqpacket.send_packet(sock, message, logs)
        assert receive(sock) == {"op": "assigned"}
        while (answer := receive(sock))["op"] != "exited":
            pass
        return int(answer["status"])


def read_all(logs: list[int]) -> bytes:
    """What is in both files."""
    return b"".join(os.pread(fd, 64 << 20, 0) for fd in logs)


def printing(raw: bytes) -> str:
    """A source that writes *raw* to its output and ends."""
    return f"import os; os.write(1, {raw!r} + b'\\n'); os._exit(0)"


TERMINAL = ("211", "steer the terminal of who reads its log", "init makes lines printable", "the command line does too")
LINES = ("212", "forge lines of the log, with times and streams", "init makes the lines", "-")
DISK = ("213", "fill the disk with its log", "two files of bounded size", "so many bytes a second")
MEMORY = ("214", "fill init's memory: 20 MB without a new line", "a line has 4 KiB", "memory cgroup")
CHILDREN = (
    "215",
    "keep its init and the daemon busy by children that talk after its end",
    "init reads no more than a socket holds",
    "seccomp: no children",
)


@attempt(TERMINAL[0], TERMINAL[1], first=TERMINAL[2], second=TERMINAL[3], part="attack", outcome="escaped")
@pytest.mark.parametrize("raw", STEERING.values(), ids=STEERING)
def test_output_steers_no_terminal(ground: Ground, raw: bytes) -> None:
    """Whatever a worker writes becomes whole lines of printable text behind init's own stamp."""
    with logged(ground) as (slot, logs):
        say(slot, logs, printing(raw))
        lines = read_all(logs).decode().splitlines()
    assert len(lines) == 1
    assert STAMPED.fullmatch(lines[0])
    assert lines[0].isprintable()


@attempt(TERMINAL[0], TERMINAL[1], first=TERMINAL[2], second=TERMINAL[3], part="twin", outcome="kept")
def test_honest_output_is_kept(ground: Ground) -> None:
    """Words of any language stay as they were."""
    with logged(ground) as (slot, logs):
        say(slot, logs, printing("grüße, 你好, καλημέρα 😀\ttab".encode()))
        text = read_all(logs).decode()
    assert "grüße, 你好, καλημέρα 😀\\ttab" in text


@attempt(TERMINAL[0], TERMINAL[1], first=TERMINAL[2], second=TERMINAL[3], part="removed", outcome="raw")
def test_raw_output_would_steer_a_terminal(ground: Ground) -> None:
    """With an init that writes what it gets, the escape sequence is in the file."""
    with logged(ground, "--without", "self_check", "--bad", "no_trace:raw_logs") as (slot, logs):
        say(slot, logs, printing(STEERING["title"]))
        assert b"\x1b]0;pwned\x07" in read_all(logs)


@attempt(LINES[0], LINES[1], first=LINES[2], second=LINES[3], part="attack", outcome="every line has init's stamp")
def test_lines_cannot_be_forged(ground: Ground) -> None:
    """A line that looks like one of init's is text behind init's own time and stream."""
    with logged(ground) as (slot, logs):
        say(slot, logs, printing(FORGED))
        lines = list(read_lines(slot.id, read_all(logs)))
    assert [line.text for line in lines] == ["first", "2026-01-01T00:00:00.000Z err forged", "last"]
    assert {line.stream for line in lines} == {"out"}
    assert all(not line.at.startswith("2026-01-01") for line in lines)


@attempt(LINES[0], LINES[1], first=LINES[2], second=LINES[3], part="twin", outcome="kept apart")
def test_streams_are_told_apart(ground: Ground) -> None:
    """What a worker writes to either stream is under that stream's name."""
    with logged(ground) as (slot, logs):
        say(slot, logs, "import os; os.write(1, b'a\\n'); os.write(2, b'b\\n'); os._exit(0)")
        lines = list(read_lines(slot.id, read_all(logs)))
    assert sorted((line.stream, line.text) for line in lines) == [("err", "b"), ("out", "a")]


@attempt(LINES[0], LINES[1], first=LINES[2], second=LINES[3], part="removed", outcome="forged")
def test_lines_of_the_worker_alone_would_be_believed() -> None:
    """Without init in between, the reader takes the forged line for one of init's."""
    lines = list(read_lines("s00000000", FORGED))
    assert [(line.at, line.stream, line.text) for line in lines] == [("2026-01-01T00:00:00.000Z", "err", "forged")]


FLOOD = "import os\nfor _ in range(200): os.write(1, (b'x' * 999 + b'\\n') * 65)\nos._exit(0)"


@attempt(DISK[0], DISK[1], first=DISK[2], second=DISK[3], part="attack", outcome="bounded")
def test_a_flood_does_not_fill_the_disk(ground: Ground) -> None:
    """13 MB of lines leave two files of 1 MiB at most, the newest lines in them."""
    with logged(ground) as (slot, logs):
        say(slot, logs, FLOOD)
        sizes = [os.fstat(fd).st_size for fd in logs]
    assert max(sizes) <= LOG_BYTES
    assert sum(sizes) > LOG_BYTES // 2


@attempt(DISK[0], DISK[1], first=DISK[2], second=DISK[3], part="twin", outcome="kept")
def test_an_honest_amount_is_kept(ground: Ground) -> None:
    """A thousand lines are all there."""
    with logged(ground) as (slot, logs):
        say(slot, logs, "import os\nfor n in range(1000): os.write(1, b'line %d\\n' % n)\nos._exit(0)")
        texts = [line.text for line in read_lines(slot.id, read_all(logs))]
    assert texts == [f"line {n}" for n in range(1000)]


@attempt(DISK[0], DISK[1], first=DISK[2], second=DISK[3], part="removed", outcome="4 MiB and 256 KiB a second")
def test_a_flood_without_a_bound_of_size_meets_the_rate(ground: Ground) -> None:
    """With room without end more is written, but what comes too fast is lost."""
    with logged(ground) as (slot, logs):
        say(slot, logs, FLOOD, log_bytes=1 << 30)
        size = len(read_all(logs))
    assert 2 * LOG_BYTES < size < 12 << 20


ENDLESS = "import os\nfor _ in range(320): os.write(1, b'x' * 65536)\nos._exit(0)"


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


@attempt(MEMORY[0], MEMORY[1], first=MEMORY[2], second=MEMORY[3], part="attack", outcome="one line of 4 KiB")
def test_a_line_without_end_is_cut(ground: Ground) -> None:
    """Init keeps the first 4 KiB of it and holds no more memory than before, but for a read's worth."""
    with logged(ground) as (slot, logs):
        before = peak_bytes(slot.pid)
        say(slot, logs, ENDLESS)
        grown = peak_bytes(slot.pid) - before
        lines = read_all(logs).decode().splitlines()
    assert [len(line) for line in lines] == [MAX_LINE - 1]
    assert grown < 4 << 20


@attempt(MEMORY[0], MEMORY[1], first=MEMORY[2], second=MEMORY[3], part="twin", outcome="kept whole")
def test_a_long_line_is_kept_whole(ground: Ground) -> None:
    """Four thousand characters are one line."""
    with logged(ground) as (slot, logs):
        say(slot, logs, "import os; os.write(1, b'y' * 4000 + b'\\n'); os._exit(0)")
        lines = list(read_lines(slot.id, read_all(logs)))
    assert [line.text for line in lines] == ["y" * 4000]


@attempt(MEMORY[0], MEMORY[1], first=MEMORY[2], second=MEMORY[3], part="removed", outcome="init holds all of it")
def test_a_line_without_a_bound_is_held(ground: Ground) -> None:
    """An init that waits for the end of a line holds whatever a worker writes before it."""
    with logged(ground, "--without", "self_check", "--bad", "no_trace:endless_lines") as (slot, logs):
        before = peak_bytes(slot.pid)
        say(slot, logs, ENDLESS)
        assert peak_bytes(slot.pid) - before > 16 << 20


TALKERS = """
import os
for n in range(12):
    if os.fork() == 0:
        while True:
            try:
                control.send(b"still here")
            except OSError:
                os._exit(0)
os._exit(3)
"""


@attempt(
    CHILDREN[0], CHILDREN[1], first=CHILDREN[2], second=CHILDREN[3], part="attack", outcome="the end is told at once"
)
def test_children_do_not_delay_the_news_of_an_end(ground: Ground) -> None:
    """Profile `subprocess`: children talk on after the worker's end, and the daemon hears of it all the same."""
    with logged(ground, profile="subprocess") as (slot, logs):
        assert os.WEXITSTATUS(say(slot, logs, TALKERS)) == 3


@attempt(CHILDREN[0], CHILDREN[1], first=CHILDREN[2], second=CHILDREN[3], part="twin", outcome="told at once")
def test_an_end_without_children_is_told(ground: Ground) -> None:
    """The same worker without children ends with its status."""
    with logged(ground, profile="subprocess") as (slot, logs):
        assert os.WEXITSTATUS(say(slot, logs, "import os; os._exit(3)")) == 3


@attempt(CHILDREN[0], CHILDREN[1], first=CHILDREN[2], second=CHILDREN[3], part="removed", outcome="packets without end")
def test_a_patient_init_would_listen_for_ever(ground: Ground) -> None:
    """An init that reads until nothing comes passes on more than any socket holds, and no word of the end."""
    options = ("--without", "self_check", "--bad", "no_trace:patient")
    with logged(ground, *options, profile="subprocess") as (slot, logs), slot.connect() as sock:
        message = {"op": "assign", "body": TALKERS.encode(), "log_bytes": LOG_BYTES, "fds": ["log", "log"]}
        seqpacket.send_packet(sock, message, logs)
        heard = {receive(sock)["op"] for _ in range(5000)}
    assert heard == {"assigned", "worker"}


@attempt(CHILDREN[0], CHILDREN[1], first=CHILDREN[2], second=CHILDREN[3], part="removed", outcome="no children")
def test_a_standard_worker_has_no_children(ground: Ground) -> None:
    """Profile `standard`: the second wall refuses the fork itself."""
    with ground.slot() as slot:
        assert slot.run("import os; result = attempt(os.fork)") == "Operation not permitted"
