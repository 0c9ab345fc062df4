"""Where a model's tensors are: on the device of its slot, or, while nobody asks, with the host only.

What the bundle gave lies on the host anyway, one copy for all workers with that bundle. So a model leaves its device by
forgetting what is there, and comes back by one copy; only what was made or written since is copied to the host.
What torch does not count is not seen: a module that writes to its weights through ``.data``, or by kernels of its own,
has to put itself on its device.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import torch

_MIB: Final = 1 << 20
_HOST: Final = torch.device("cpu")


class _Stay(NamedTuple):
    """A tensor of the bundle's, and how what was made of it is known to be still the same."""

    host: torch.Tensor
    mark: tuple[int, int] | None


class Residence:
    """The parameters and buffers of *module*, which are where it was put so far.

    *is_given* says whether a tensor is the bundle's own.
    """

    def __init__(
        self, module: torch.nn.Module, device: torch.device, is_given: Callable[[torch.Tensor], bool] = lambda _: False
    ) -> None:
        self.is_away = False
        self._module = module
        self._device = device
        self._is_given = is_given
        self._stays: dict[str, _Stay] = {}

    def take(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """A request's tensors, on the device. A model that is away comes back for it first."""
        if self.is_away:
            began = time.monotonic()
            size = self.enter()
            _log(f"{size / _MIB:,.0f} MiB came back to the device", began)
        return [tensor.to(self._device) for tensor in inputs]

    def enter(self) -> int:
        """Come to the device, all or nothing: whatever a device without room raises, the model stays away.

        Gives the bytes that are there now.
        """
        hosts = dict(self._list_tensors())
        here = {name: _copy(host, self._device) for name, host in hosts.items()}
        given = {name: host.detach() for name, host in hosts.items() if self._is_given(host)}
        _replace(hosts, here)
        self._stays = {name: _Stay(host, _mark(hosts[name])) for name, host in given.items()}
        for part in self._module.modules():
            if isinstance(part, torch.nn.RNNBase):
                part.flatten_parameters()  # as `Module.to` does
        self.is_away = False
        return sum(tensor.nbytes for tensor in here.values())

    def leave(self) -> int:
        """Leave the device to others. Gives the bytes that were there."""
        tensors = dict(self._list_tensors())
        size = sum(tensor.nbytes for tensor in tensors.values())
        _replace(tensors, {name: self._find_host(name, tensor) for name, tensor in tensors.items()})
        self._stays = {}
        self.is_away = True
        return size

    def _find_host(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        stay = self._stays.get(name)
        if stay is not None and stay.mark is not None and stay.mark == _mark(tensor):
            return stay.host
        return _copy(tensor, _HOST)

    def _list_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each once, however often the module has it."""
        yield from self._module.named_parameters()
        yield from self._module.named_buffers()


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """One of the same kind: what is made in inference mode does not count how often it is written to."""
    with torch.inference_mode(mode=tensor.is_inference()):
        return tensor.detach().to(device, copy=True)


def _replace(tensors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> None:
    """Change what *tensors* stand for, so that whoever refers to them has the others."""
    with torch.inference_mode(mode=False):
        for name, tensor in tensors.items():
            tensor.data = others[name]


def _mark(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Where it lies and how often it was written to; None of what was made in inference mode, which nobody counts."""
    try:
        return tensor.data_ptr(), tensor._version  # noqa: SLF001 - torch has no other name for it
    except RuntimeError:
        return None


def doze(residences: Sequence[Residence], idle_s: float) -> list[Residence]:
    """All of them leave the device that nobody asked for anything for *idle_s* seconds. Gives those that could."""
    began = time.monotonic()
    left = []
    size = 0
    for residence in residences:
        try:
            size += 0 if residence.is_away else residence.leave()
            left.append(residence)
        except Exception as e:  # noqa: BLE001 - a tenant's tensors may be of any kind; what cannot leave stays
            _log(f"a model stays on the device: {e}", began)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _log(f"idle for {idle_s:g} s: {size / _MIB:,.0f} MiB left the device", began)
    return left


def _log(text: str, began_s: float) -> None:
    """Into the tenant's own log, however the tenant left its streams."""
    with contextlib.suppress(OSError):
        os.write(1, f"bedsit: {text} ({(time.monotonic() - began_s) * 1000:,.1f} ms)\n".encode(errors="replace"))
