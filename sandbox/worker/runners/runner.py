"""What every runner gives: tensors in, tensors out, both in the order that the manifest declares."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bedsit.ipc.errors import error
from bedsit.sandbox.worker.bundle import Bundle


class Runner:
    """A loaded model."""

    def __init__(self, bundle: Bundle, call: Callable[..., Any]) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.rooms = bundle.rooms
        self._call = call
        self._names = [spec.name for spec in self.manifest.outputs]

    def run(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Call the model. Whatever it raises passes through; an answer of the wrong form is ``output.invalid``."""
        answer = self._call(*inputs)
        names = self._names
        if isinstance(answer, torch.Tensor):
            if len(names) == 1:
                return (answer,)
            answer = (answer,)
        elif isinstance(answer, Mapping):
            missing = [name for name in names if name not in answer]
            if missing:
                raise error("output.invalid", f"the model gave no output {missing[0]!r}")
            answer = [answer[name] for name in names]
        if not isinstance(answer, (tuple, list)) or len(answer) != len(names):
            raise error(
                "output.invalid",
                f"the model gave {type(answer).__name__}, declared are {len(names)} outputs",
                "return a tensor, a tuple in the declared order, or a dict by name",
            )
        for name, value in zip(names, answer, strict=True):
            if not isinstance(value, torch.Tensor):
                raise error("output.invalid", f"output {name!r} is a {type(value).__name__}", "return tensors")
        return answer
