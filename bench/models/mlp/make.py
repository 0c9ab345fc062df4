"""Write the bundle with random weights, always the same."""

from pathlib import Path
from typing import Any, Final

from examples.bundles import write_bundle

TEMPLATE: Final = Path(__file__).parent / "bundle"
SEED: Final = 0


def make(out: Path) -> Path:
    """Write the bundle to *out*; gives *out*."""
    return write_bundle(TEMPLATE, out, load().state_dict())


def load() -> Any:
    """The net itself, with the weights of the bundle."""
    import torch

    from bench.models.mlp.bundle.model import build

    torch.manual_seed(SEED)
    return build().eval()
