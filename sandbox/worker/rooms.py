"""Where the outputs of the request that runs now will go, for models that write there themselves."""

from collections.abc import Sequence

import torch

from bedsit.ipc.manifest import TensorSpec
from bedsit.ipc.wire import ALIGNMENT, Region
from bedsit.sandbox.worker.arenas import Mapped
from bedsit.sandbox.worker.tensors import NAMES, TORCH_DTYPES, tensor_at


class Rooms:
    """The rooms of one model's outputs; lent for one call at a time."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._index = {spec.name: index for index, spec in enumerate(specs)}
        self._specs = specs
        self._regions: Sequence[Region] = ()
        self._arena: Mapped | None = None
        #: Where the model computes that writes there; what it makes on a GPU is copied.
        self.device = torch.device("cpu")

    def lend(self, regions: Sequence[Region], arena: Mapped | None) -> None:
        """From now on these; none to take them back."""
        self._regions, self._arena = regions, arena

    def output(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """An uninitialised tensor for the output *name*: in the caller's own memory where there is room, else its own.

        What is written to it and returned from the call is not copied. Raises KeyError when there is no such output.
        """
        wanted = TORCH_DTYPES[self._specs[self._index[name]].dtype] if dtype is None else dtype
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=wanted, device=self.device)
        return self.at_home(name, shape, wanted)

    def at_home(self, name: str, shape: Sequence[int], wanted: torch.dtype) -> torch.Tensor:
        """The same, in the host's memory wherever the model computes."""
        index = self._index[name]
        spec = self._specs[index]
        size = torch.Size(shape)
        nbytes = size.numel() * wanted.itemsize
        if self._arena is not None and index < len(self._regions) and NAMES.get(wanted) == spec.dtype and nbytes:
            room = self._regions[index]
            inside = room.offset % ALIGNMENT == 0 and room.offset + room.capacity <= len(self._arena.pages)
            if inside and nbytes <= room.capacity:
                return tensor_at(spec.dtype, tuple(size), room.offset, self._arena)
        return torch.empty(size, dtype=wanted)
