"""The lease page: what one process writes and another reads, without a word between them."""

import mmap
import os
import stat
from pathlib import Path

import pytest

from bedsit.ipc.leasepage import PAGE_BYTES, LeasePage, LeaseView, Turn, split_word


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a page lies."""
    return tmp_path / "lease"


def test_a_new_page_lets_run(path: Path) -> None:
    """Nobody takes turns until a router says so, and no epoch was granted."""
    page = LeasePage(path)
    view = LeaseView.open(str(path))
    assert (page.state, page.epoch, split_word(view.words[0])) == (Turn.FREE, 0, (Turn.FREE, 0))
    page.close()


def test_the_reader_sees_what_was_written(path: Path) -> None:
    """State, epoch and end of each turn; an epoch is only used up by a grant."""
    page = LeasePage(path)
    view = LeaseView.open(str(path))
    page.grant(12345)
    assert (split_word(view.words[0]), view.words[1]) == ((Turn.HELD, 1), 12345)
    assert (page.is_over(12344), page.is_over(12345)) == (False, True)
    page.revoke()
    assert split_word(view.words[0]) == (Turn.WAIT, 1)
    assert page.is_over(0)
    page.free()
    assert split_word(view.words[0]) == (Turn.FREE, 1)
    assert not page.is_over(1 << 62)
    page.grant(1)
    assert split_word(view.words[0]) == (Turn.HELD, 2)
    page.close()


def test_a_turn_may_end_earlier(path: Path) -> None:
    """Its epoch is the same; never later; and who was free has one from then on."""
    page = LeasePage(path)
    view = LeaseView.open(str(path))
    page.end_by(50)
    assert (split_word(view.words[0]), view.words[1]) == ((Turn.HELD, 1), 50)
    page.end_by(20)
    page.end_by(70)
    assert (split_word(view.words[0]), view.words[1]) == ((Turn.HELD, 1), 20)
    assert (page.is_over(19), page.is_over(20)) == (False, True)
    page.close()


def test_the_next_writer_goes_on_where_the_last_one_was(path: Path) -> None:
    """Also when that one was killed: what it wrote is in the file."""
    page = LeasePage(path)
    for _ in range(7):
        page.grant(99)
    page.close()
    page.grant(1)  # into nothing
    again = LeasePage(path)
    assert (page.is_old, again.is_old) == (False, True)
    assert (again.state, again.epoch, again.is_over(98), again.is_over(99)) == (Turn.HELD, 7, False, True)
    again.close()


@pytest.mark.parametrize("size", [0, 1, 15, PAGE_BYTES * 3])
def test_a_file_of_another_size_becomes_a_page(path: Path, size: int) -> None:
    """Whatever was there under its name."""
    path.write_bytes(b"\xff" * size)
    page = LeasePage(path)
    assert path.stat().st_size == PAGE_BYTES
    assert page.state in set(Turn)
    page.free()
    assert split_word(LeaseView.open(str(path)).words[0])[0] == Turn.FREE
    page.close()


def test_no_link_is_followed(path: Path, tmp_path: Path) -> None:
    """The router writes to a file of its own folder, or to none."""
    (tmp_path / "other").write_bytes(b"secret")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        LeasePage(path)
    assert (tmp_path / "other").read_bytes() == b"secret"


def test_a_reader_cannot_write(path: Path) -> None:
    """Neither through its mapping, nor by another one of its descriptor: the file's mode is the owner's."""
    page = LeasePage(path)
    view = LeaseView.open(str(path))
    with pytest.raises(TypeError, match="read-only"):
        view.words[0] = 1
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(fd)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    page.close()


@pytest.mark.parametrize("word", [0, 1, 2, 3, (1 << 64) - 1, 1 << 63, 7])
def test_any_word_means_something(word: int) -> None:
    """What no router writes says: wait."""
    state, epoch = split_word(word)
    assert state == (Turn.WAIT if word & 3 == 3 else Turn(word & 3))
    assert epoch == word >> 2


def test_who_has_no_page_takes_no_turns() -> None:
    """A worker without one runs as it likes."""
    assert split_word(LeaseView.free().words[0]) == (Turn.FREE, 0)
