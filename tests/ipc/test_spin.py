"""Spinning: a moment longer than nothing, and never for nothing."""

from collections.abc import Callable

from bedsit.ipc.spin import Spin

_FOREVER_US = 60_000_000


def _give(*values: int | None) -> tuple[Callable[[], int | None], list[int]]:
    """A look that gives *values* one after the other, the last one for ever; and how often it was asked."""
    looks: list[int] = []

    def look() -> int | None:
        looks.append(len(looks))
        return values[min(len(looks), len(values)) - 1]

    return look, looks


def test_what_is_there_is_given_at_once() -> None:
    """One look, however long the spin may take."""
    look, looks = _give(7)
    assert Spin(_FOREVER_US).wait(look) == 7
    assert len(looks) == 1


def test_it_looks_again_until_something_is_there() -> None:
    """What comes while it spins is given by the look that found it."""
    look, looks = _give(None, None, None, 0, 5)
    assert Spin(_FOREVER_US).wait(look) == 5
    assert len(looks) == 5


def test_nothing_in_time_is_none() -> None:
    """After its limit the caller sleeps: at least one look was made, none gave anything."""
    for limit_us in (0, 1, 100):
        look, looks = _give(None)
        assert Spin(limit_us).wait(look) is None
        assert looks


def test_after_eight_misses_it_rests() -> None:
    """An idle process does not burn its core: sixty-four waits pass without a look, then it tries again."""
    look, looks = _give(None)
    spin = Spin(0)
    for _ in range(8):
        before = len(looks)
        assert spin.wait(look) is None
        assert len(looks) > before
    before = len(looks)
    for _ in range(64):
        assert spin.wait(look) is None
    assert len(looks) == before
    assert spin.wait(look) is None
    assert len(looks) > before


def test_a_rest_gives_nothing_even_if_something_is_there() -> None:
    """The caller then sleeps and finds it there; nothing is lost."""
    spin = Spin(0)
    for _ in range(8):
        spin.wait(lambda: None)
    look, looks = _give(7)
    assert spin.wait(look) is None
    assert looks == []


def test_one_hit_and_the_misses_count_anew() -> None:
    """Where it pays now and then, it goes on."""
    spin = Spin(0)
    for _ in range(50):
        for _ in range(7):
            assert spin.wait(lambda: None) is None
        assert spin.wait(lambda: 1) == 1


def test_an_error_of_the_look_passes_through() -> None:
    """And leaves the spin as it was."""
    spin = Spin(0)

    def look() -> int | None:
        raise ValueError

    for _ in range(20):
        try:
            spin.wait(look)
        except ValueError:
            continue
        raise AssertionError("it was not raised")
    assert spin.wait(lambda: 3) == 3
