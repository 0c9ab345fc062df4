"""``runner = "torch-export"``: a ``.pt2`` program. Loading one executes code of its author, hence only in a slot."""

import torch

from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.runners.runner import Runner


def load_torch_export(bundle: Bundle) -> Runner:
    """Load the exported program once; ``.module()`` takes longer than a small model's call."""
    program = torch.export.load(bundle.path / bundle.manifest.entry)
    return Runner(bundle, program.module())
