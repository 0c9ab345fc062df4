"""Who computes out of turn, from counters alone."""

from bedsit.supervisor.evasion import Count, Evasion

S = 1_000_000
MARKS = frozenset({"run", "slot"})


def feed(evasion: Evasion, *steps: tuple[float, float, float], of: frozenset[str] = MARKS) -> list[dict[str, float]]:
    """What is found after each of (time, processor time, time of turns), all in seconds."""
    return [evasion.judge(int(at * S), {"acme": Count(int(cpu * S), int(turns * S), of)}) for at, cpu, turns in steps]


def test_who_computes_in_its_turns_is_not_found() -> None:
    """Whether it uses all of them or waits in them; what is a little more than them is between batches."""
    assert feed(Evasion(), (0, 0, 0), (5, 2, 2), (10, 2.5, 4), (15, 4.9, 6), (20, 5.2, 6)) == [{}] * 5


def test_who_computes_without_turns_is_found_the_second_time() -> None:
    """With the part of the time in which it did, and anew after that."""
    found = feed(Evasion(), (0, 0, 0), (5, 3, 0.5), (10, 6, 1), (15, 9, 1.5), (20, 12, 2))
    assert found == [{}, {}, {"acme": 0.5}, {}, {"acme": 0.5}]


def test_once_is_chance() -> None:
    """A look that was late, or a turn that ended just before."""
    assert feed(Evasion(), (0, 0, 0), (5, 2, 0), (10, 2, 2), (15, 4, 2), (20, 4, 4)) == [{}] * 5


def test_looks_in_a_hurry_find_nobody() -> None:
    """Two clocks that are not read at once differ by more than a short time allows: such looks are one."""
    hurried = [(0.0, 0.0, 0.0), *((0.01 * i, 0.01 * i, 0.0) for i in range(1, 50))]
    evasion = Evasion()
    assert feed(evasion, *hurried) == [{}] * 50
    assert feed(evasion, (5, 5, 0), (5.01, 5.01, 0), (10, 10, 0)) == [{}, {}, {"acme": 1.0}]


def test_other_slots_or_another_router_are_another_count() -> None:
    """Counters that begin anew say nothing of the time before."""
    evasion = Evasion()
    feed(evasion, (0, 0, 0), (5, 5, 0))
    assert feed(evasion, (10, 900, 0), (15, 905, 0), of=frozenset({"run", "other"})) == [{}, {}]
    assert feed(evasion, (20, 910, 0), of=frozenset({"run", "other"})) == [{"acme": 1.0}]


def test_who_is_gone_is_forgotten() -> None:
    """And begins anew when it comes back."""
    evasion = Evasion()
    feed(evasion, (0, 0, 0), (5, 5, 0))
    assert evasion.judge(6 * S, {}) == {}
    assert feed(evasion, (10, 10, 0), (15, 15, 0)) == [{}, {}]
