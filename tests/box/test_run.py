"""The part of the box that is not in the box: which checks there are, and what counts as a failure."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.box.guest.check import CHECKS
from tests.box.guest.plan import NAMES, choose
from tests.box.guest.words import LAST
from tests.box.run import listen


class Script:
    """A machine that says what it is given."""

    def __init__(self, *lines: str, hangs: bool = False) -> None:
        self._lines = lines
        self._hangs = hangs

    def lines(self, deadline: float) -> Iterator[str]:
        assert deadline > time.monotonic()
        yield from self._lines
        if self._hangs:
            raise TimeoutError("the box did not end in time")


def test_every_check_is_in_the_plan_and_says_what_holds() -> None:
    """No chapter is forgotten, no check needs what comes after it, and each has its sentence."""
    assert set(NAMES) == set(CHECKS)
    for number, name in enumerate(NAMES):
        assert set(CHECKS[name].needs) <= set(NAMES[:number]), name
        assert (CHECKS[name].run.__doc__ or "").endswith("."), name


def test_a_single_check_brings_what_it_needs() -> None:
    """In the order of the plan; a name that nobody knows is an error."""
    assert choose(["tenant"]) == ["wheel", "units", "start", "tenant"]
    assert choose([]) == list(NAMES)
    with pytest.raises(KeyError):
        choose(["nothing"])


def test_a_box_that_falls_silent_has_not_passed(capsys: Any) -> None:
    """What was heard counts, and nothing else: a hang or an early end leaves names without a result."""
    assert listen(Script("ok wheel 3.1", "FAIL units why", hangs=True)) == (
        {"wheel": True, "units": False},
        "the box did not end in time",
    )
    assert listen(Script("ok wheel 3.1", "| ok in a log is no verdict"))[0] == {"wheel": True}
    assert "FAIL units why" in capsys.readouterr().out


def test_the_power_off_is_measured_here(capsys: Any) -> None:
    """From the box's last line to its end; without that line nobody knows, and it has failed."""
    assert listen(Script("ok power_off 0.0", LAST))[0] == {"power_off": True}
    assert listen(Script("ok power_off 0.0"))[0] == {"power_off": False}
    assert "ok power_off 0.0 s after the order" in capsys.readouterr().out
