"""Siblings are copies of one process: no two of them draw the same random numbers, wherever they draw them from."""

from collections.abc import Callable
from typing import Any, Final

import pytest

from tests_support.marks import NUMBERS

SLOTS: Final = 100
#: Every source that keeps a state of its own. The zygote has drawn from each before it forks.
DRAWS: Final = """
import multiprocessing, random, ssl, tempfile, uuid
import numpy, torch
draws = {
    "random": lambda: random.random(),
    "random.Random": lambda: random.Random().random(),
    "numpy": lambda: numpy.random.rand(),
    "numpy.default_rng": lambda: numpy.random.default_rng().random(),
    "torch": lambda: float(torch.rand(1, dtype=torch.float64)),
    "torch.randperm": lambda: torch.randperm(1 << 20)[:2].tolist(),
    "torch.initial_seed": lambda: torch.initial_seed(),
    "uuid1": lambda: str(uuid.uuid1()),
    "uuid4": lambda: str(uuid.uuid4()),
    "tempfile": lambda: next(tempfile._get_candidate_names()),
    "openssl": lambda: ssl.RAND_bytes(16).hex(),
    "authkey": lambda: bytes(multiprocessing.current_process().authkey).hex(),
}
result = {name: draw() for name, draw in draws.items()}
"""


@pytest.fixture(scope="module")
def drawn(house: Any) -> Any:
    """A zygote with torch that has drawn from every source."""
    return house.start_zygote("--torch", "--run-first", DRAWS)


@NUMBERS(part="attack", outcome="all differ")
def test_all_streams_of_a_hundred_slots_differ(house: Any, drawn: Any) -> None:
    """From every source, a hundred siblings draw a hundred different things."""
    found: list[dict[str, Any]] = []
    for _ in range(SLOTS):
        slot = house.spawn(drawn)
        found.append(slot.run(DRAWS))
        house.end(slot)
    same = {name: len({str(draw[name]) for draw in found}) for name in found[0]}
    assert {name: count for name, count in same.items() if count < SLOTS} == {}


@NUMBERS(part="removed", outcome="the same numbers")
def test_without_the_step_siblings_draw_the_same(box: Any) -> None:
    """The wall is the step: numpy, torch and the key of multiprocessing are copies without it."""
    zygote = box.start_zygote("--torch", "--without", "reseed", "--run-first", DRAWS)
    first, second = (box.spawn(zygote).run(DRAWS) for _ in range(2))
    assert sorted(name for name in first if first[name] == second[name]) == [
        "authkey",
        "numpy",
        "torch",
        "torch.initial_seed",
        "torch.randperm",
    ]


@pytest.mark.parametrize("source", ["hash('a tenant')", "id(object)"])
def test_what_siblings_share_until_the_next_generation(
    spawn: Callable[..., Any], shell_zygote: Any, source: str
) -> None:
    """The layout of the memory and the seed of hash() are the generation's: that is what the rotation is for."""
    first, second = (spawn(shell_zygote).run(f"result = {source}") for _ in range(2))
    assert first == second
