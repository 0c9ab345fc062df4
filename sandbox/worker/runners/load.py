"""Choosing the runner that a manifest names."""

from collections.abc import Callable, Mapping
from typing import Final

from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.runners.python import load_python
from bedsit.sandbox.worker.runners.runner import Runner
from bedsit.sandbox.worker.runners.torch_export import load_torch_export

_LOADERS: Final[Mapping[str, Callable[[Bundle], Runner]]] = {
    "python": load_python,
    "torch-export": load_torch_export,
}


def load_runner(bundle: Bundle) -> Runner:
    """Load the model. Runs the tenant's code: whatever that raises passes through."""
    return _LOADERS[bundle.manifest.runner](bundle)
