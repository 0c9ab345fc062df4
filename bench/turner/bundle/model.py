"""Burns processor time for so many milliseconds, in steps between which it may yield; says when it ran.

Its clock is CLOCK_MONOTONIC, which all processes of a box have in common. Each piece is a beginning and an end.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

_YIELDED_NS = 20_000  # a yield point that took longer was one


def build(bundle: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """``ms``: how long, and how long a step is; without steps it never yields."""
    clock = time.monotonic_ns

    def burn(ms: torch.Tensor) -> torch.Tensor:
        began = clock()
        left_ns, step_ns = int(float(ms[0]) * 1e6), int(float(ms[1]) * 1e6)
        pieces = []
        while left_ns > 0:
            until = clock() + min(left_ns, step_ns or left_ns)
            while clock() < until:
                pass
            left_ns -= step_ns or left_ns
            ended = clock()
            if step_ns and left_ns > 0:
                bundle.yield_point()
                now = clock()
                if now - ended > _YIELDED_NS:
                    pieces.append((began, ended))
                    began = now
        pieces.append((began, ended))
        return torch.tensor(pieces, dtype=torch.int64)

    return burn
