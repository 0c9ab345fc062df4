"""The lifecycle's timers: once, under one name, and rests that do not end together."""

import asyncio
import time

from bedsit.supervisor.stimuli import Timer
from bedsit.supervisor.timers import Timers


def ring_all(kind: str, count: int, delay_s: float) -> list[float]:
    """How long after they were set, each for *delay_s*, timers of that kind rang, in seconds, in order."""
    rang: list[float] = []

    async def run() -> None:
        began, done = time.monotonic(), asyncio.Event()

        def ring(_: Timer) -> None:
            rang.append(time.monotonic() - began)
            if len(rang) == count:
                done.set()

        timers = Timers(ring)
        for subject in range(count):
            timers.set(Timer(kind, str(subject)), delay_s)  # type: ignore[arg-type]
        await done.wait()

    asyncio.run(asyncio.wait_for(run(), 30))
    return rang


def test_rests_of_what_failed_together_do_not_end_together() -> None:
    """Up to a quarter longer than said, and never shorter; a deadline is what it says."""
    rests, deadlines = ring_all("restart", 50, 1.0), ring_all("load", 50, 1.0)

    assert min(rests) >= 1.0
    assert rests[-1] - rests[0] > 0.1
    assert deadlines[-1] - deadlines[0] < 0.1


def test_a_timer_rings_once_and_not_when_it_is_stopped() -> None:
    """Set again, the earlier setting is void."""
    rang: list[Timer] = []

    async def run() -> None:
        timers = Timers(rang.append)
        timers.set(Timer("load", "a"), 0.01)
        timers.set(Timer("load", "a"), 0.02)
        timers.set(Timer("load", "b"), 0.01)
        timers.stop(Timer("load", "b"))
        timers.set(Timer("drain", "a"), 0.03)
        timers.stop(Timer("load", "unknown"))
        await asyncio.sleep(0.1)
        timers.set(Timer("load", "c"), 0.01)
        timers.stop_all()
        await asyncio.sleep(0.05)

    asyncio.run(run())

    assert rang == [Timer("load", "a"), Timer("drain", "a")]
