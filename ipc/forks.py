"""Whether this is still the same process: a number to compare, cheaper than asking the kernel for a pid."""

import os
from typing import Final

_generation: Final = [0]


def generation() -> int:
    """The same number for as long as the process is the same."""
    return _generation[0]


def _count() -> None:
    _generation[0] += 1


os.register_at_fork(after_in_child=_count)
