"""A line alone: which requests make a batch, when it is ripe, and what is known of the work ahead."""

from types import SimpleNamespace
from typing import Any

import pytest

from bedsit.ipc.manifest import Batch
from bedsit.ipc.snapshot import ModelView
from bedsit.supervisor.router.lines import Line
from bedsit.supervisor.router.requests import Request

MS = 1_000_000
NOW = 10_000 * MS
FAST, ZMQ = SimpleNamespace(token=b""), SimpleNamespace(token=b"\x01token")
MANY = 1 << 30


def _line(policy: Batch | None = None, **limits: Any) -> Line:
    return Line(ModelView("gate", 1, 1, True, [], **limits), 1, policy)


def _push(line: Line, *rows: int, **changes: Any) -> list[Request]:
    """Requests with so many rows join the line."""
    fields: dict[str, Any] = {"session": FAST, "deadline_ns": 0, "priority": 1, "arrived_ns": NOW} | changes
    made = [Request(line=line, packet=b"x" * 10, ident=index, rows=count, **fields) for index, count in enumerate(rows)]
    for request in made:
        line.push(request)
    return made


def _take(line: Line) -> list[int]:
    return [request.rows for request in line.take(MANY)]


def test_a_model_that_is_not_batched_gets_one_request_at_a_time() -> None:
    """However many wait, and whatever they say of their rows."""
    line = _line()
    _push(line, 0, 0, 1, 5)
    assert [_take(line) for _ in range(5)] == [[0], [0], [1], [5], []]
    assert (line.queued, line.queued_bytes) == (0, 0)


def test_a_batch_has_no_more_rows_than_the_model_takes() -> None:
    """It ends before the first request that does not fit, so that nobody is overtaken; a larger one goes alone."""
    line = _line(Batch(8))
    _push(line, 3, 3, 3, 5, 8, 20, 1, 1, 7, 1)
    batches = []
    while line.queued:
        batches.append(_take(line))
    assert batches == [[3, 3], [3, 5], [8], [20], [1, 1], [7, 1]]


def test_a_batch_has_no_more_requests_than_rows_are_allowed() -> None:
    """Requests without a row, or that claim to have none, are counted like the others."""
    line = _line(Batch(4))
    _push(line, *[0] * 9)
    assert [_take(line) for _ in range(3)] == [[0] * 4, [0] * 4, [0]]


def test_a_batch_has_no_more_requests_than_may_be_at_workers() -> None:
    """The caller's bound counts, and the model's own, for what is not there yet."""
    line = _line(Batch(8), concurrency_max=5)
    _push(line, *[1] * 8)
    line.in_flight = 2
    assert len(line.take(2)) == 2
    assert len(line.take(4)) == 3
    line.in_flight = 5
    assert line.is_held()


def test_a_batch_is_of_one_lane() -> None:
    """It ends where the lane changes."""
    line = _line(Batch(8))
    for session in (FAST, FAST, ZMQ, ZMQ, ZMQ, FAST):
        _push(line, 1, session=session)
    batches = []
    while line.queued:
        batches.append([request.session for request in line.take(MANY)])
    assert batches == [[FAST, FAST], [ZMQ, ZMQ, ZMQ], [FAST]]


def test_a_batch_is_made_in_order_of_priority() -> None:
    """What is urgent is in it before what came earlier."""
    line = _line(Batch(3))
    _push(line, 10, 11, priority=0)
    _push(line, 1, priority=1)
    _push(line, 2, priority=2)
    assert _take(line) == [2, 1]
    assert _take(line) == [10]


def test_a_batch_is_ripe_at_once_without_a_delay() -> None:
    """Nobody waits for company where the model does not say how long."""
    line = _line(Batch(8))
    _push(line, 4, 4)
    line.take(MANY)
    _push(line, 1)
    assert line.ripe_ns(NOW, idle=True) == 0


def test_a_lone_caller_never_waits() -> None:
    """After a batch of one row the next row is ripe when it comes, however long the model would have it wait."""
    line = _line(Batch(8, 1000.0))
    for _ in range(3):
        _push(line, 1)
        assert line.ripe_ns(NOW, idle=True) == 0
        assert _take(line) == [1]
        line.answered(1, 10 * MS, NOW)


def test_after_a_batch_the_line_waits_for_as_many_rows_or_the_delay() -> None:
    """Three rows came together: one, then two of them wait for the third, and no longer than declared."""
    line = _line(Batch(8, 20.0))
    _push(line, 1, 2)
    assert _take(line) == [1, 2]
    line.answered(2, 10 * MS, NOW)
    _push(line, 1)
    _push(line, 1, arrived_ns=NOW + 5 * MS)
    assert line.ripe_ns(NOW + 5 * MS, idle=True) == NOW + 20 * MS
    assert line.ripe_ns(NOW + 20 * MS, idle=True) == 0
    assert line.ripe_ns(NOW + 5 * MS, idle=False) == 0  # the worker is busy: to wait in its queue costs nothing
    _push(line, 1, arrived_ns=NOW + 6 * MS)
    assert line.ripe_ns(NOW + 6 * MS, idle=True) == 0
    assert _take(line) == [1, 1, 1]


def test_two_groups_that_take_turns_become_one() -> None:
    """Those that waited when a batch was answered wait for its callers to come back; from then on all go together."""
    line = _line(Batch(16, 20.0))
    _push(line, *[1] * 4)
    assert len(_take(line)) == 4
    _push(line, *[1] * 4)  # while the others run
    now = NOW + 100 * MS
    line.answered(4, 100 * MS, now)
    assert line.ripe_ns(now, idle=True) == now + 20 * MS  # they have waited for long, and for the others from now on
    for turn in range(3):
        _push(line, *[1] * (3 if turn == 0 else 7), arrived_ns=now + MS)
        assert line.ripe_ns(now + MS, idle=True) == now + (20 if turn == 0 else 21) * MS
        _push(line, 1, arrived_ns=now + 2 * MS)
        assert line.ripe_ns(now + 2 * MS, idle=True) == 0
        assert len(_take(line)) == 8
        now += 100 * MS
        line.answered(8, 100 * MS, now)


def test_a_crowd_that_left_is_waited_for_once() -> None:
    """Who is left of it waits as long as declared, and after that for nobody."""
    line = _line(Batch(16, 20.0))
    _push(line, *[1] * 8)
    _take(line)
    line.answered(8, 10 * MS, NOW)
    _push(line, 1, arrived_ns=NOW + MS)
    assert line.ripe_ns(NOW + MS, idle=True) == NOW + 21 * MS
    assert line.ripe_ns(NOW + 21 * MS, idle=True) == 0
    for _ in range(3):
        assert _take(line) == [1]
        line.answered(1, 10 * MS, NOW)
        _push(line, 1, arrived_ns=NOW + MS)
        assert line.ripe_ns(NOW + MS, idle=True) == 0


def test_no_more_is_waited_for_than_a_batch_takes() -> None:
    """Eight rows are enough, of however many requests, where fifteen may come; what was withdrawn does not count."""
    line = _line(Batch(8, 20.0))
    _push(line, *[1] * 8)
    _take(line)
    waiting = _push(line, *[1] * 7)
    line.answered(8, 10 * MS, NOW)
    assert line.ripe_ns(NOW, idle=True) == NOW + 20 * MS
    line.drop(waiting[0])
    _push(line, 1)
    assert line.ripe_ns(NOW, idle=True) == NOW + 20 * MS
    (back,) = _push(line, 1)
    assert line.ripe_ns(NOW, idle=True) == 0
    line.drop(back)
    assert line.ripe_ns(NOW, idle=True) == NOW + 20 * MS
    line.push_back(back)
    assert line.ripe_ns(NOW, idle=True) == 0
    assert _take(line) == [1] * 8
    line.answered(8, 10 * MS, NOW)
    _push(line, 3, 3)
    assert line.ripe_ns(NOW, idle=True) == NOW + 20 * MS
    _push(line, 2)
    assert line.ripe_ns(NOW, idle=True) == 0


def test_a_full_batch_does_not_wait() -> None:
    """As many requests as it can have rows make it full."""
    line = _line(Batch(4, 20.0))
    _push(line, *[1] * 4)
    line.take(MANY)
    line.answered(4, 10 * MS, NOW)
    _push(line, *[0] * 4)
    assert line.ripe_ns(NOW, idle=True) == 0


def test_a_batch_grows_while_its_worker_has_one_to_run() -> None:
    """A full one may go ahead of time, one of them; a model that is not batched knows no such thing."""
    line = _line(Batch(4))
    _push(line, *[1] * 3)
    assert [line.is_forming(batches) for batches in (0, 1, 2)] == [False, True, True]
    _push(line, 1)
    assert [line.is_forming(batches) for batches in (0, 1, 2)] == [False, False, True]
    alone = _line()
    _push(alone, 1)
    assert not any(alone.is_forming(batches) for batches in (0, 1, 2))


@pytest.mark.parametrize("whose", [0, 1])
def test_a_deadline_cuts_the_wait(whose: int) -> None:
    """Of any that waits, with what one request costs and a margin left to it."""
    line = _line(Batch(8, 1000.0))
    _push(line, 5)
    line.take(MANY)
    line.answered(1, 10 * MS, NOW)
    deadlines = [0, 0]
    deadlines[whose] = NOW + 100 * MS
    for deadline_ns in deadlines:
        _push(line, 1, deadline_ns=deadline_ns)
    at_ns = line.ripe_ns(NOW, idle=True)
    assert NOW + 50 * MS < at_ns < NOW + 90 * MS
    assert line.ripe_ns(at_ns, idle=True) == 0
    _push(line, 1, deadline_ns=NOW + 11 * MS)
    assert line.ripe_ns(NOW, idle=True) == 0


def test_nobody_knows_how_long_the_line_is_before_it_has_been_measured() -> None:
    """Eight batches, and a worker that serves it: then the backlog is the cost of what is ahead, shared by workers."""
    line = _line()
    line.slots = [None]  # type: ignore[list-item]
    _push(line, *[1] * 3)
    line.in_flight = 1
    for _ in range(7):
        line.answered(1, 10 * MS, NOW)
        assert line.backlog_ns() == 0
    line.answered(2, 20 * MS, NOW)
    assert line.backlog_ns() == 40 * MS
    line.slots = [None, None]  # type: ignore[list-item]
    assert line.backlog_ns() == 20 * MS
    line.slots = []
    assert line.backlog_ns() == 0


@pytest.mark.parametrize(("policy", "behind"), [(None, [5, 4, 3, 0]), (Batch(2), [5, 3, 1, 0])])
def test_what_runs_is_not_behind(policy: Batch | None, behind: list[int]) -> None:
    """Each worker is at one request, or at a batch of them; what is in flight beyond that waits like what is queued."""
    line = _line(policy)
    _push(line, *[1] * 3)
    line.in_flight = 2
    found = []
    for workers in (0, 1, 2, 9):
        line.slots = [None] * workers  # type: ignore[list-item]
        found.append(line.count_behind())
    assert found == behind


def test_an_idle_line_has_no_backlog() -> None:
    """Whatever it cost before."""
    line = _line()
    line.slots = [None]  # type: ignore[list-item]
    for _ in range(10):
        line.answered(1, 1000 * MS, NOW)
    assert line.backlog_ns() == 0


def test_an_estimate_follows_what_is_measured() -> None:
    """One measurement that is off changes it a little, many that agree change it for good."""
    line = _line()
    line.answered(1, 8 * MS, NOW)
    line.answered(1, 16 * MS, NOW)
    assert line.cost_ns == 9 * MS
    for _ in range(100):
        line.answered(4, 64 * MS, NOW)
    assert 15 * MS < line.cost_ns <= 16 * MS


def test_what_is_dropped_is_not_there_any_more() -> None:
    """Once, and from wherever it waits; what comes back is the first."""
    line = _line()
    low = _push(line, 1, 2, priority=0)
    normal = _push(line, 3, 4)
    assert line.drop(normal[0])
    assert not line.drop(normal[0])
    assert (line.queued, line.queued_bytes) == (3, 30)
    line.push_back(normal[0])
    assert [request.rows for request in line.waiting()] == [3, 4, 1, 2]
    assert line.head() is normal[0]
    for request in (*normal, *low):
        assert line.drop(request)
    assert line.head() is None
