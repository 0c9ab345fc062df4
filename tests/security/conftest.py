"""Hostile attempts: the ground they are made on, and the record of what came of them."""

from collections.abc import Iterator

import pytest

from tests_support.attempts import Ground
from tests_support.leaks import keep
from tests_support.record import Record
from tests_support.slots import House, slot_mounts


def pytest_configure(config: pytest.Config) -> None:
    """Watch the whole run: attempts lie in other folders too."""
    if not config.pluginmanager.has_plugin("attacks"):
        config.pluginmanager.register(Record(config), "attacks")


@pytest.fixture(autouse=True)
def no_mounts_on_the_box() -> Iterator[None]:
    """Whatever an attempt does: no mount of a slot is ever seen outside it."""
    yield
    assert slot_mounts() == []


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    """A run folder and groups for the whole session."""
    made = House()
    yield made
    made.close()


@pytest.fixture(scope="session")
def ground(house: House) -> Iterator[Ground]:
    """The session's zygotes, one for each list of steps."""
    made = Ground(house)
    with keep(made.marks):
        yield made
