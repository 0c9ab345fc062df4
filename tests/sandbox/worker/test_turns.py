"""Turns as a worker takes them: what it does is decided by the page, and by the packets that make it look again."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.leasepage import LeasePage, LeaseView
from bedsit.ipc.slot import Word
from bedsit.sandbox.worker.turns import Turns

_FAR = 1 << 62


class Stage:
    """A page, a worker's turns, and what happens each time that it waits for a packet."""

    def __init__(self, folder: Path) -> None:
        self.page = LeasePage(folder / "lease")
        self.said: list[tuple[Word, int]] = []
        self.script: list[Callable[[], object]] = []
        self.router_left = False
        self.is_elsewhere = True  # what it runs on is no core of its own, but a GPU
        self.turns = Turns(
            LeaseView.open(str(folder / "lease")),
            self._hear,
            lambda *said: self.said.append(said),
            finish=lambda: self.is_elsewhere,
        )

    def _hear(self) -> bool:
        assert self.script or self.router_left, "it would wait for ever"
        if self.script:
            self.script.pop(0)()
        return self.router_left


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """One worker."""
    made = Stage(tmp_path)
    yield made
    made.page.close()
    del made.turns  # and with it the mapped page, which a cycle would keep


def test_who_takes_no_turns_is_never_asked(stage: Stage) -> None:
    """It begins and yields without a word or a wait."""
    assert stage.turns.begin()
    stage.turns.yield_point()
    assert stage.said == []


def test_a_batch_waits_for_its_turn(stage: Stage) -> None:
    """However many packets come before."""
    stage.page.revoke()
    stage.script = [lambda: None, lambda: None, lambda: stage.page.grant(_FAR)]
    assert stage.turns.begin()
    assert stage.script == []


def test_a_turn_lasts_until_its_time(stage: Stage) -> None:
    """Before that a yield point does nothing; after it the epoch is given back, and the next one waited for."""
    stage.page.grant(_FAR)
    assert stage.turns.begin()
    stage.turns.yield_point()
    assert stage.said == []
    stage.page.grant(time.monotonic_ns())
    stage.script = [stage.page.revoke, lambda: stage.page.grant(_FAR)]
    stage.turns.yield_point()
    assert stage.said == [(Word.YIELD, 2)]
    stage.turns.yield_point()
    assert stage.said == [(Word.YIELD, 2)]


def test_a_turn_that_was_given_back_does_not_come_again(stage: Stage) -> None:
    """A page that still says HELD of that epoch, as the router has not read the word yet, is not another turn."""
    stage.page.grant(time.monotonic_ns())
    assert stage.turns.begin()
    looked = []
    stage.script = [lambda: looked.append(1), lambda: looked.append(2), stage.page.free]
    stage.turns.yield_point()
    assert (stage.said, looked) == ([(Word.YIELD, 1)], [1, 2])


def test_each_batch_has_a_turn_of_its_own(stage: Stage) -> None:
    """One that was sent behind another waits, whatever the page still says of that one's turn."""
    stage.page.grant(_FAR)
    assert stage.turns.begin()
    stage.turns.end()
    looked: list[int] = []
    stage.script = [lambda: looked.append(1), stage.page.revoke, lambda: stage.page.grant(_FAR)]
    assert stage.turns.begin()
    assert looked == [1]


def test_the_end_of_a_turn_is_told_once_and_only_where_somebody_waits(stage: Stage) -> None:
    """With its epoch; alone nothing is told, and a turn that was taken away is not given back."""
    assert stage.turns.begin()
    stage.turns.end()
    stage.page.grant(_FAR)
    assert stage.turns.begin()
    stage.turns.end()
    stage.turns.end()
    stage.page.revoke()
    stage.turns.end()
    assert stage.said == [(Word.END, 1)]


def test_on_cores_a_turn_lasts_until_the_answer(stage: Stage) -> None:
    """Packing takes the core as well: nothing is told, and the epoch is used up all the same."""
    stage.is_elsewhere = False
    stage.page.grant(_FAR)
    assert stage.turns.begin()
    stage.turns.end()
    stage.script = [stage.page.revoke, lambda: stage.page.grant(_FAR)]
    assert stage.turns.begin()
    assert (stage.said, stage.script) == ([], [])


def test_a_turn_that_began_in_the_middle_ends_with_its_batch(stage: Stage) -> None:
    """Who ran alone has a turn from when somebody else came: it is no turn for what was sent behind."""
    assert stage.turns.begin()
    stage.page.grant(_FAR)
    stage.turns.end()
    stage.script = [lambda: stage.page.grant(_FAR)]
    assert stage.turns.begin()
    assert stage.script == []


def test_a_turn_granted_while_the_last_answer_was_on_its_way_counts(stage: Stage) -> None:
    """The router may be faster than the worker's next line: the turn of the next batch is there before it looks."""
    stage.page.grant(_FAR)
    assert stage.turns.begin()
    stage.turns.end()
    stage.page.revoke()  # the answer was read
    stage.page.grant(_FAR)  # and the next batch let go, all before this worker runs on
    assert stage.turns.begin()


def test_a_revoked_turn_is_given_back_at_once(stage: Stage) -> None:
    """Whatever time it had."""
    stage.page.grant(_FAR)
    assert stage.turns.begin()
    stage.page.revoke()
    stage.script = [lambda: stage.page.grant(_FAR)]
    stage.turns.yield_point()
    assert stage.said == [(Word.YIELD, 1)]


def test_nobody_wants_what_waits_when_the_router_is_gone(stage: Stage) -> None:
    """A batch that waits is not run; a call that waits is cancelled."""
    stage.router_left = True
    stage.page.revoke()
    assert not stage.turns.begin()
    with pytest.raises(BedsitError) as caught:
        stage.turns.yield_point()
    assert caught.value.code == "request.cancelled"
