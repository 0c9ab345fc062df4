"""Burns processor time for so many milliseconds, in steps between which it may yield; says when it ran.

Its clock is CLOCK_MONOTONIC, which all processes of a box have in common. Each piece is a beginning and an end.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_YIELDED_NS = 20_000  # a yield point that took longer was one
_MOST = 1000


def build(bundle: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """``ms``: how long, and how long a step is; without steps it never yields."""
    clock = time.monotonic_ns

    def burn(ms: torch.Tensor) -> torch.Tensor:
        began = clock()
        left_ns, step_ns = int(float(ms[0]) * 1e6), int(float(ms[1]) * 1e6)
        pieces, used = np.empty((_MOST, 2), np.int64), 0
        while left_ns > 0:
            until = clock() + min(left_ns, step_ns or left_ns)
            while clock() < until:
                pass
            left_ns -= step_ns or left_ns
            if step_ns and left_ns > 0:
                ended = clock()
                bundle.yield_point()
                now = clock()
                if now - ended > _YIELDED_NS and used < _MOST - 1:
                    pieces[used] = began, ended
                    began, used = now, used + 1
        pieces[used, 0] = began
        answer = torch.from_numpy(pieces[: used + 1])
        pieces[used, 1] = clock()  # the last thing that it does
        return answer

    return burn
