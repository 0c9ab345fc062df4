"""The generic cell rate algorithm against exact arithmetic."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedsit.supervisor.router.gcra import Gcra

SECOND = 1_000_000_000
RATES = st.one_of(
    st.floats(1e-6, 1e6, allow_nan=False),
    st.sampled_from([1 / 3, 0.1, 3.0, 7.0, 1000.0, 1e6, 5e-324, 1e300]),
    st.integers(1, 10**6),
)
BURSTS = st.integers(1, 20)


def scale_steps(rate: float, steps: list[float]) -> list[int]:
    """Times whose distances are *steps*, in units of what one request takes at *rate*."""
    times, now_ns = [], 0
    for step in steps:
        now_ns += int(step * min(1e18, SECOND / max(rate, 1e-9)))
        times.append(now_ns)
    return times


@given(RATES, BURSTS, st.lists(st.floats(0, 3), max_size=20))
@settings(deadline=None)
def test_what_is_admitted_is_all_that_may_be(rate: float, burst: int, steps: list[float]) -> None:
    """A request is refused exactly when it would be one more than burst + rate * time since any one before it."""
    limit = Gcra(rate, burst)
    admitted: list[int] = []
    for now_ns in scale_steps(rate, steps):
        for _ in range(3):
            since = [(now_ns - earlier_ns, len(admitted) - index) for index, earlier_ns in enumerate(admitted)]
            may = all(number + 1 <= burst + Fraction(rate) * time_ns / SECOND for time_ns, number in since)
            assert (limit.admit(now_ns) == 0) == may
            if may:
                admitted.append(now_ns)


@given(RATES, BURSTS, st.integers(0, 10**18), st.integers(1, 30))
@settings(deadline=None)
def test_who_keeps_to_the_rate_is_never_refused(rate: float, burst: int, start_ns: int, number: int) -> None:
    """Requests that are an interval apart are admitted, and so are bursts that are a burst of intervals apart."""
    limit = Gcra(rate, burst)
    for index in range(number):
        now_ns = start_ns + index * math.ceil(burst * SECOND / Fraction(rate))
        assert [limit.admit(now_ns) for _ in range(burst)] == [0] * burst
    steady = Gcra(rate, 1)
    assert {steady.admit(start_ns + index * math.ceil(SECOND / Fraction(rate))) for index in range(number)} == {0}


@given(RATES, BURSTS, st.lists(st.floats(0, 2), min_size=1, max_size=30))
@settings(deadline=None)
def test_the_wait_is_exact(rate: float, burst: int, steps: list[float]) -> None:
    """After the wait a request is admitted, and a nanosecond earlier it is told to wait for that nanosecond."""
    limit = Gcra(rate, burst)
    for now_ns in scale_steps(rate, steps):
        for _ in range(burst):
            limit.admit(now_ns)
        wait_ns = limit.admit(now_ns)
        assert wait_ns > 0
        if wait_ns > 1:
            assert limit.admit(now_ns + wait_ns - 1) == 1
        assert limit.admit(now_ns + wait_ns) == 0


def test_a_refusal_counts_for_nothing() -> None:
    """Who asks a thousand times too early waits no longer for it."""
    limit = Gcra(10, 1)
    assert limit.admit(0) == 0
    assert {limit.admit(1) for _ in range(1000)} == {SECOND // 10 - 1}


def test_a_burst_comes_at_once_and_again_when_it_has_leaked() -> None:
    """Five at once, then one each tenth of a second, and five at once after half a second of silence."""
    limit = Gcra(10, 5)
    assert [limit.admit(0) for _ in range(6)] == [0] * 5 + [SECOND // 10]
    assert [limit.admit(SECOND // 10) for _ in range(2)] == [0, SECOND // 10]
    assert [limit.admit(SECOND * 6 // 10) for _ in range(6)] == [0] * 5 + [SECOND // 10]


def test_a_rate_of_0_is_no_limit() -> None:
    """Whatever comes is admitted, at any time."""
    limit = Gcra(0, 1)
    assert {limit.admit(now_ns) for now_ns in (5, 5, 5, 0, -7)} == {0}


@given(RATES, BURSTS, st.lists(st.floats(-3, 3), max_size=30))
@settings(deadline=None)
def test_a_clock_that_steps_back_gives_and_takes_nothing(rate: float, burst: int, steps: list[float]) -> None:
    """Only steps forward earn admissions, and no wait is longer than that of a full bucket."""
    limit = Gcra(rate, burst)
    times = scale_steps(rate, steps)
    admitted, forward_ns = 0, 0
    for before_ns, now_ns in zip([0, *times], times, strict=False):
        forward_ns += max(0, now_ns - before_ns)
        for _ in range(2):
            wait_ns = limit.admit(now_ns)
            admitted += wait_ns == 0
            assert 0 <= wait_ns <= math.ceil(SECOND / Fraction(rate))
    assert admitted <= burst + Fraction(rate) * Fraction(forward_ns, SECOND)


def test_a_clock_that_was_an_hour_ahead_is_not_waited_for() -> None:
    """A step back by an hour makes nobody wait for an hour."""
    limit = Gcra(10, 3)
    for _ in range(3):
        assert limit.admit(3600 * SECOND) == 0
    assert limit.admit(0) == SECOND // 10
    assert limit.admit(SECOND // 10) == 0


@pytest.mark.parametrize(
    ("rate", "burst", "wait_ns"),
    [
        (10.0, 5, SECOND // 10),  # nothing changed
        (1.0, 5, SECOND),
        (1e6, 5, 1000),
        (10.0, 3, SECOND // 10),  # more is owed than the bucket has room for: it is full
        (10.0, 7, 0),
        (0.0, 5, 0),
    ],
)
def test_other_limits_keep_what_is_owed(rate: float, burst: int, wait_ns: int) -> None:
    """Five requests that were admitted are five that are owed at the new rate, as far as the new burst has room."""
    limit = Gcra(10, 5)
    for _ in range(5):
        limit.admit(0)
    limit.update(rate, burst)
    assert limit.admit(0) == wait_ns


def test_a_limit_that_was_lifted_for_a_moment_is_not_forgotten() -> None:
    """Updates to no limit and back give no new burst."""
    limit = Gcra(10, 1)
    assert limit.admit(0) == 0
    limit.update(0, 1)
    assert limit.admit(1) == 0
    limit.update(10, 1)
    assert limit.admit(2) == SECOND // 10 - 2


@given(st.lists(RATES, max_size=20))
@settings(deadline=None)
def test_updates_give_nothing_away(rates: list[float]) -> None:
    """After any number of other rates at one moment a burst that is used up is used up."""
    limit = Gcra(10, 3)
    for _ in range(3):
        limit.admit(0)
    for rate in rates:
        limit.update(rate, 3)
    assert limit.admit(0) > 0


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf, -math.inf])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    """It raises, and the limits stay what they were."""
    limit = Gcra(10, 1)
    with pytest.raises(ValueError, match="a rate is"):
        limit.update(rate, 5)
    assert [limit.admit(0), limit.admit(0)] == [0, SECOND // 10]


@pytest.mark.parametrize("burst", [0, -1])
def test_a_burst_of_none_is_refused(burst: int) -> None:
    """It would admit nobody, ever."""
    with pytest.raises(ValueError, match="a burst is"):
        Gcra(10, burst)
