"""``runner = "torch-export"``: a ``.pt2`` program. Loading one executes code of its author, hence only in a slot."""

import torch

from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.residence import Residence
from bedsit.sandbox.worker.runners.runner import Runner


def load_torch_export(bundle: Bundle) -> Runner:
    """Load the exported program once, for the slot's device; ``.module()`` takes longer than a small model's call.

    What a program says of devices is changed with it: one that was exported on a CPU runs on a GPU.
    """
    program = torch.export.load(bundle.path / bundle.manifest.entry)
    if bundle.device.type == "cpu":
        return Runner(bundle, program.module())
    from torch.export.passes import move_to_device_pass  # noqa: PLC0415 - no slot without a GPU has to hold it

    module = move_to_device_pass(program, bundle.device).module()
    return Runner(bundle, module, Residence(module, bundle.device, pause=bundle.yield_point))
