"""The models that every rival serves, with the same weights everywhere. Imported in rivals' environments too.

tiny   64 -> 64 -> 8: what everything around a call costs
echo   gives back what it got: what bytes cost
mlp    1024 -> 4096 -> 1024, batched: at most 16 rows, which wait for each other for at most 2 ms
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[np.float32]
Call = Callable[[Array], Array]

SEED: Final = 0
MAX_BATCH: Final = 16
MAX_WAIT_MS: Final = 2
#: The largest request or answer that a rival must let through, in bytes.
MAX_BYTES: Final = 256 << 20


class Model(NamedTuple):
    """*row_in* and *row_out* are the elements of one row, -1 where rows may have any."""

    name: str
    row_in: int
    row_out: int
    batched: bool = False


MODELS: Final[Mapping[str, Model]] = {
    model.name: model for model in (Model("tiny", 64, 8), Model("echo", -1, -1), Model("mlp", 1024, 1024, batched=True))
}


def make_input(name: str, values: int | None = None) -> Array:
    """One row for a model; *values* is its length where the model leaves it free."""
    columns = MODELS[name].row_in if values is None else values
    return np.random.default_rng(SEED).random((1, columns), dtype=np.float32)


def load(name: str) -> Call:
    """A model as a call from array to array, warmed up. Its input may be flat, as it comes off a wire."""
    import torch

    # What comes off a wire is read-only; nobody writes to it here.
    warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    net = _build(name).eval()
    columns = MODELS[name].row_in

    def call(x: Array) -> Array:
        rows = x.reshape(1, -1) if columns < 0 else x.reshape(-1, columns)
        with torch.inference_mode():
            y: Array = net(torch.from_numpy(rows)).numpy()
        return y

    call(make_input(name, 64 if columns < 0 else None))
    return call


def run_batch(call: Call, inputs: Sequence[Array]) -> list[Array]:
    """Answer several requests of one row each by one call."""
    return np.split(call(np.concatenate([x.reshape(1, -1) for x in inputs])), len(inputs))


def _build(name: str) -> "nn.Module":
    if name == "tiny":
        from examples.tiny.bundle.model import build
    elif name == "mlp":
        from bench.models.mlp.bundle.model import build
    else:
        from torch.nn import Identity as build  # noqa: N813 - one name for what makes the net

    return build()
