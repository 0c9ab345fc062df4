"""Real zygotes, real slots and real cgroups for tests, and a check that each test leaves none of them behind."""

from collections.abc import Callable, Iterator

import pytest

from tests_support.slots import House, Slot, Zygote, slot_mounts


@pytest.fixture(autouse=True)
def no_mounts_on_the_box() -> Iterator[None]:
    """Whatever a test orders: no mount of a slot is ever seen outside it."""
    yield
    assert slot_mounts() == []


@pytest.fixture
def box() -> Iterator[House]:
    """An empty box."""
    made = House()
    yield made
    made.close()


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    """A box for the whole session."""
    made = House()
    yield made
    made.close()


@pytest.fixture(scope="session")
def shell_zygote(house: House) -> Zygote:
    """A zygote whose workers run what they are assigned, with all walls."""
    return house.start_zygote()


@pytest.fixture
def spawn(house: House) -> Iterator[Callable[..., Slot]]:
    """Makes slots of the session's zygotes, which end with the test."""
    yield house.spawn
    for slot in tuple(house.slots):
        house.end(slot)


@pytest.fixture
def slot(spawn: Callable[..., Slot], shell_zygote: Zygote) -> Slot:
    """A fresh slot of the session's zygote, with all walls."""
    return spawn(shell_zygote)


@pytest.fixture(scope="session")
def unfiltered_zygote(house: House) -> Zygote:
    """A zygote whose slots have neither landlock nor seccomp, so that the walls behind those answer."""
    return house.start_zygote("--without", "landlock,seccomp")


@pytest.fixture
def unfiltered(spawn: Callable[..., Slot], unfiltered_zygote: Zygote) -> Slot:
    """A fresh slot without landlock and seccomp."""
    return spawn(unfiltered_zygote)
