"""What every runner gives: tensors in, tensors out, both in the order that the manifest declares."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bedsit.ipc.errors import error
from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.residence import Residence


class Runner:
    """A loaded model. Inputs are taken to its *residence*, if it has one; outputs on a device come home in the call."""

    def __init__(self, bundle: Bundle, call: Callable[..., Any], residence: Residence | None = None) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.rooms = bundle.rooms
        self.residence = residence
        if residence is not None:
            self.rooms.device = bundle.device
        self._call = call
        self._names = [spec.name for spec in self.manifest.outputs]

    def run(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Call the model. Whatever it raises passes through; an answer of the wrong form is ``output.invalid``."""
        answer = self._call(*(inputs if self.residence is None else self.residence.take(inputs)))
        names = self._names
        if isinstance(answer, torch.Tensor):
            if len(names) == 1:
                return (answer if answer.is_cpu else self._bring_home(names[0], answer),)
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
        if not all(value.is_cpu for value in answer):
            return [v if v.is_cpu else self._bring_home(name, v) for name, v in zip(names, answer, strict=True)]
        return answer

    def _bring_home(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return self.rooms.at_home(name, value.shape, value.dtype).copy_(value)
