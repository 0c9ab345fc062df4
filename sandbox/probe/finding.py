"""One thing that a box has or lacks: how to look for it, and what was found."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: is it there (None: not to be seen without root), what was found, and what hangs on it.

    *exposes* says what is open without it, *mend* the command or the change that brings it. *walls* are the layers of
    a slot that need it. A box without what is not *required* is sound.
    """

    name: str
    ok: bool | None
    found: str
    exposes: str
    mend: str
    walls: tuple[str, ...]
    required: bool


class Missing(Exception):
    """It is not there; *mend* says more than the check itself where the reason is known."""

    def __init__(self, why: str, mend: str = "") -> None:
        super().__init__(why)
        self.mend = mend


class Check(NamedTuple):
    """One prerequisite; see `Finding`."""

    name: str
    look: Callable[[], str]
    exposes: str
    mend: str
    walls: tuple[str, ...] = ()
    required: bool = True
