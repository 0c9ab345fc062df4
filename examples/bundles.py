"""A bundle is a folder: what is in it is written here, once, for all examples."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

WEIGHTS = "model.safetensors"


def write_bundle(template: Path, out: Path, weights: "Mapping[str, Tensor] | Path") -> Path:
    """Copy *template* (``bedsit.toml`` and code) to *out* and put the weights beside it; gives *out*.

    Weights are named tensors, or a safetensors file that is copied as it is. Raises OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in template.iterdir():
        if file.is_file():
            shutil.copyfile(file, out / file.name)
    if isinstance(weights, Path):
        shutil.copyfile(weights, out / WEIGHTS)
    else:
        from safetensors.torch import save_file

        save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, out / WEIGHTS)
    return out
