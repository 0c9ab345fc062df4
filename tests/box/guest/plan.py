"""All checks in their order."""

from collections.abc import Sequence
from typing import Final

from tests.box.guest import devices, doors, ground, install, jail, killed, leaving, limits, serving, struck, upgrade
from tests.box.guest.check import CHECKS

#: The jail's tests have the machine to themselves: before there is a bedsit whose slots come and go. A zygote takes an
#: emulated processor most of a minute: after it is killed comes the version that brings another one anyway.
_CHAPTERS: Final = (install, jail, serving, devices, killed, doors, limits, ground, struck, upgrade, leaving)
NAMES: Final = tuple(
    name for chapter in _CHAPTERS for name, check in CHECKS.items() if check.run.__module__ == chapter.__name__
)


def choose(names: Sequence[str]) -> list[str]:
    """The names of *names* and of all that they need, in order; of all where there are none. Raises KeyError."""
    wanted: set[str] = set()
    waiting = list(names or NAMES)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += CHECKS[name].needs
    return [name for name in NAMES if name in wanted]
