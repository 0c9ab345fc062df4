"""``runner = "python"``: a factory in the bundle gives an ``nn.Module`` or any callable."""

import importlib
import itertools
import sys
from pathlib import Path

import torch

from bedsit.ipc.errors import error
from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.residence import Residence
from bedsit.sandbox.worker.runners.runner import Runner


def load_python(bundle: Bundle) -> Runner:
    """Import the entry's module, call its factory with the bundle, and load the weights that it did not load itself.

    An ``nn.Module`` is put in eval mode; if the bundle declares exactly one weights file and the factory did not ask
    for it, its tensors become the module's parameters without a copy. A module whose tensors are all on the CPU is put
    on the slot's device; one that its factory has put somewhere, or that has none, and whatever else can be called, is
    left as it is.
    """
    module_name, _, function_name = bundle.manifest.entry.partition(":")
    model = _import_from(bundle.path, module_name, function_name, bundle)
    if isinstance(model, torch.nn.Module):
        if len(bundle.manifest.weights) == 1 and not bundle.weights_were_asked_for:
            model.load_state_dict(bundle.load_weights(), assign=True)
        model.eval().requires_grad_(requires_grad=False)
    if not callable(model):
        raise error("model.load_failed", f"{bundle.manifest.entry} gave a {type(model).__name__}, nothing to call")
    if bundle.device.type == "cpu" or not isinstance(model, torch.nn.Module) or not _is_at_home(model):
        return Runner(bundle, model)
    residence = Residence(model, bundle.device, bundle.has_given, bundle.yield_point)
    residence.enter()
    return Runner(bundle, model, residence)


def _is_at_home(module: torch.nn.Module) -> bool:
    """Whether it has tensors, as far as it says, and all of them on the CPU."""
    tensors = [*module.parameters(), *module.buffers()]
    return bool(tensors) and all(tensor.is_cpu for tensor in tensors)


def _import_from(folder: Path, module_name: str, function_name: str, bundle: Bundle) -> object:
    """Call the factory with the bundle's folder first on the path.

    Two bundles may have modules of the same name: what was imported from the folder leaves ``sys.modules`` again (its
    functions keep what they refer to), so a bundle's own modules must be imported while it loads, not in a call.
    """
    last = next(reversed(sys.modules))
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
        factory = getattr(module, function_name, None)
        if factory is None:
            raise error("model.load_failed", f"module {module_name!r} has no {function_name!r}", "check `entry`")
        return factory(bundle)
    finally:
        sys.path.remove(str(folder))
        for name in _newer_than(last):
            origin = getattr(sys.modules[name], "__file__", None)
            if origin is not None and Path(origin).is_relative_to(folder):
                del sys.modules[name]
        # Not importlib.invalidate_caches, which writes to 1.3 MiB that workers share: no other finder knows the folder.
        sys.path_importer_cache.pop(str(folder), None)


def _newer_than(last: str) -> list[str]:
    """The modules imported after *last*, newest first.

    Only these are touched: a set of all names would write to 2,000 reference counts, 3 MiB of pages that workers share.
    """
    return list(itertools.takewhile(lambda name: name != last, reversed(sys.modules)))
