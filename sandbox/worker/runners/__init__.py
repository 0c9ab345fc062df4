"""One file per model format: how a bundle becomes something that can be called with tensors."""

from bedsit.sandbox.worker.runners.load import load_runner
from bedsit.sandbox.worker.runners.runner import Runner

__all__ = ["Runner", "load_runner"]
