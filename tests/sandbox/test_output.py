"""Raw output into bounded lines."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bedsit.sandbox.budget import Budget
from bedsit.sandbox.output import MAX_LINE, Output, printable
from tests_support.marks import OUTPUT


@OUTPUT(part="attack", outcome="escaped")
@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain", "plain"),
        ("grün ✓".encode(), "grün ✓"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"a\rb\tc", "a\\rb\\tc"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u202egnp.exe\u2028next".encode(), "\\u202egnp.exe\\u2028next"),
        (b"", ""),
    ],
)
def test_only_printable_text_is_written(raw: bytes, text: str) -> None:
    """No control, format or line-breaking character, and no broken UTF-8."""
    assert printable(raw) == text


Open = Callable[[int], tuple[Output, list[Path]]]


@pytest.fixture
def open_output(tmp_path: Path) -> Iterator[Open]:
    """An output into two files of so many bytes."""
    paths = [tmp_path / "0.log", tmp_path / "1.log"]
    fds = [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for path in paths]

    def make(limit: int) -> tuple[Output, list[Path]]:
        output = Output()
        output.open(fds, limit)
        return output, paths

    yield make
    for fd in fds:
        os.close(fd)


@OUTPUT(part="twin", outcome="ok")
def test_lines_are_stamped_and_joined(open_output: Open) -> None:
    """Pieces become whole lines, each with time and stream; the unfinished last one is written at the end."""
    output, (path, _) = open_output(1 << 20)
    output.feed("out", b"hel")
    output.feed("err", b"oh\n")
    output.feed("out", b"lo\n\nlast")
    output.finish()
    lines = path.read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert [re.sub(stamp, "T", line) for line in lines] == ["T err oh", "T out hello", "T out ", "T out last"]


def test_long_lines_are_cut_and_counted(open_output: Open) -> None:
    """At most 4 KiB of a line are written, however it arrives; the rest is counted, and the next line is whole."""
    output, (path, _) = open_output(1 << 20)
    for _ in range(10):
        output.feed("out", b"x" * 5000)
    output.feed("out", b"x\nnext\n")
    output.feed("out", "é".encode() * 5000 + b"\n")
    lines = path.read_bytes().splitlines(keepends=True)
    assert [len(line) <= MAX_LINE for line in lines] == [True] * 3
    assert lines[1].endswith(b"next\n")
    assert b"\\x" not in lines[2][:4000]
    assert output.dropped_bytes > 45_000


def test_two_files_take_turns(open_output: Open) -> None:
    """Neither is ever over the limit, and the newest lines are always there."""
    output, paths = open_output(1000)
    for number in range(200):
        output.feed("out", b"line %d\n" % number)
    text = "".join(path.read_text() for path in paths)
    assert all(path.stat().st_size <= 1000 for path in paths)
    assert "line 199" in text
    assert "line 180" in text
    assert "line 1\n" not in text


def test_before_it_is_opened_all_is_dropped() -> None:
    """A blank worker's output belongs to nobody."""
    output = Output()
    output.feed("out", b"secret\n")
    assert output.dropped_bytes == 7


@OUTPUT(part="attack", outcome="dropped and counted")
def test_a_flood_is_dropped_not_written(open_output: Open) -> None:
    """Beyond the allowance lines are lost, and counted."""
    output, paths = open_output(1 << 30)
    for _ in range(300):
        output.feed("out", (b"x" * 1000 + b"\n") * 60)
    assert sum(path.stat().st_size for path in paths) < 8 << 20
    assert output.dropped_bytes > 8 << 20


def test_a_full_disk_is_no_error() -> None:
    """The tenant goes on; the loss is counted."""
    output = Output()
    fds = [os.open("/dev/full", os.O_WRONLY) for _ in range(2)]
    output.open(fds, 1 << 20)
    output.feed("out", b"hello\n")
    for fd in fds:
        os.close(fd)
    assert output.dropped_bytes > 0


def test_a_budget_fills_again() -> None:
    """So many at once, then as many a second as agreed."""
    budget = Budget(per_s=1000.0, burst=2)
    assert budget.take(2)
    assert not budget.take(2)
    assert 0 < budget.wait_s(2) <= 0.002
