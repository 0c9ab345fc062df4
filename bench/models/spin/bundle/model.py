"""Uses as many milliseconds of processor time as it is asked to, however long the processor is kept from it."""

import time
from collections.abc import Callable

import torch


def build(_bundle: object) -> Callable[[torch.Tensor], torch.Tensor]:
    """Give how much it really used."""

    def spin(ms: torch.Tensor) -> torch.Tensor:
        began = time.thread_time_ns()
        until = began + int(float(ms[0]) * 1e6)
        while (now := time.thread_time_ns()) < until:
            pass
        return torch.tensor([(now - began) / 1e6])

    return spin
