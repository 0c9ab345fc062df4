"""What the router tells of what was used: counters that only grow, whatever comes and goes meanwhile."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bedsit.ipc.snapshot import DeviceView, ModelView
from bedsit.supervisor.router.dispatch import Dispatch
from bedsit.supervisor.router.lines import Line
from bedsit.supervisor.router.usage import Usage

CORE = DeviceView("core")
MODEL = ModelView("echo", 3, 1, idempotent=True, versions=[])


class Timers:
    """A loop that nobody runs."""

    def later(self, _delay_s: float, _callback: Callable[[], None]) -> None:
        """Never."""


@pytest.fixture
def dispatch() -> Dispatch:
    """One without tenants."""
    return Dispatch(Timers(), lambda _request: None, lambda _batch: None)  # type: ignore[arg-type]


@pytest.fixture
def line() -> Line:
    """The line of a model's first version, by which something was answered."""
    made = Line(MODEL, 1, None)
    made.answered(2, 5_000_000, 0)
    made.turns_ns = 4_000_000
    return made


def gates_with(*under_way: tuple[Line, int]) -> Any:
    """A dispatch whose one gate has batches of these lines under way."""

    def list_under_way(_now_ns: int) -> Iterator[tuple[Line, int]]:
        yield from under_way

    return SimpleNamespace(gates=[SimpleNamespace(list_under_way=list_under_way)], measure=lambda _now_ns: {})


def test_what_is_no_news_is_not_told_again(dispatch: Dispatch, line: Line) -> None:
    """Each row as it stands, when it has changed; all of it to who asks anew."""
    usage = Usage()
    first = usage.tell([(7, line)], dispatch, 0, anew=True)
    assert first["rows"] == [(7, 3, 1, 2, 5000, 4000)]
    assert usage.tell([(7, line)], dispatch, 0, anew=False)["rows"] == []
    line.turns_ns += 1000
    assert usage.tell([(7, line)], dispatch, 0, anew=False)["rows"] == [(7, 3, 1, 2, 5000, 4001)]
    again = usage.tell([(7, line)], dispatch, 0, anew=True)
    assert (again["rows"], again["run"]) == ([(7, 3, 1, 2, 5000, 4001)], first["run"])


def test_batches_of_one_line_that_run_at_once_all_count(line: Line) -> None:
    """One that was taken away runs on beside the next."""
    told = Usage().tell([(7, line)], gates_with((line, 1_000_000), (line, 2_000_000)), 0, anew=True)
    assert told["rows"] == [(7, 3, 1, 2, 5000, 7000)]


def test_a_line_that_is_gone_is_told_until_it_has_been_heard(dispatch: Dispatch, line: Line) -> None:
    """Also what is answered later; then it is forgotten."""
    usage = Usage()
    usage.retire(7, [line])
    line.in_flight = 1
    assert usage.tell([], dispatch, 0, anew=True)["rows"] == [(7, 3, 1, 2, 5000, 4000)]
    assert usage.tell([], dispatch, 0, anew=False)["rows"] == []
    line.answered(1, 1000, 0)
    line.in_flight = 0
    assert usage.tell([], dispatch, 0, anew=False)["rows"] == [(7, 3, 1, 3, 5001, 4000)]
    assert usage.tell([], dispatch, 0, anew=False)["rows"] == []
    assert usage.tell([], dispatch, 0, anew=True)["rows"] == []


def test_a_device_that_comes_back_goes_on_where_it_was(dispatch: Dispatch) -> None:
    """Between, its time stands still, and is told yet: nobody was there to take turns."""
    dispatch.set_devices([CORE])
    dispatch.set_devices([])
    last = dispatch.measure(0)["core"]
    assert last[0] == last[1] > 0
    assert dispatch.measure(1 << 60) == {"core": last}
    dispatch.set_devices([CORE])
    (gate,) = dispatch.gates
    then = gate.measure(gate._free_ns + 100)
    assert then == (last[0] + 100, last[1] + 100, last[2])
