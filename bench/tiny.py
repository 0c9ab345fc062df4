"""The model of the overhead benchmark: 64 -> 64 -> 8, one torch thread, the same weights for every target."""

import gc
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

INPUTS: Final = 64
SEED: Final = 0
Array = NDArray[np.float32]


def load() -> Callable[[Array], Array]:
    """The model as a call from array to array, warmed up; what is loaded is shared by processes forked later."""
    import torch

    from examples.tiny.bundle.model import build

    # What comes off a wire is read-only; nobody writes to it here.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    net = build().eval()

    def call(x: Array) -> Array:
        with torch.inference_mode():
            y: Any = net(torch.from_numpy(x)).numpy()
        return y  # type: ignore[no-any-return]

    call(make_example())
    gc.collect()
    gc.freeze()
    return call


def make_example() -> Array:
    """One input of 1 x 64."""
    return np.random.default_rng(SEED).random((1, INPUTS), dtype=np.float32)
