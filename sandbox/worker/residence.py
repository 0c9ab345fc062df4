"""Where a model's tensors are: on the device of its slot, or, while nobody asks, with the host only.

What the bundle gave lies on the host anyway, one copy for all workers with that bundle. So a model leaves its device by
forgetting what is there, and comes back by one copy; only what was made or written since is copied to the host.
What torch does not count is not seen: a module that writes to its weights through ``.data``, or by kernels of its own,
or that keeps their addresses (a captured graph does), has to put itself on its device.
"""

import contextlib
import os
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_MIB: Final = 1 << 20
_HOST: Final = torch.device("cpu")
#: Others may have their turn after so much: a GPU copies it in some 30 ms (docs/gpu, T14).
_PIECE_BYTES: Final = 256 * _MIB
Tensors = Mapping[str, torch.Tensor]


class _Stay(NamedTuple):
    """A tensor of the bundle's, and what was made of it, which is still the same as long as its mark is.

    *made* is referred to so that nothing else comes to lie where it does.
    """

    host: torch.Tensor
    made: torch.Tensor
    mark: tuple[int, int] | None


class Residence:
    """The parameters and buffers of *module*, which are where it was put so far.

    *is_given* says whether a tensor is the bundle's own. *pause* lets others have their turn, and may raise.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        is_given: Callable[[torch.Tensor], bool] = lambda _: False,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.is_away = False
        #: Some kinds of tensors stay where they were put.
        self.can_leave = all(map(_is_plain, (*module.parameters(), *module.buffers())))
        self._module = module
        self._device = device
        self._is_given = is_given
        self._pause = pause
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
        if not self.can_leave:
            self._module.to(self._device)
            return 0
        hosts = self._list_tensors()
        parameters = dict(self._module.named_parameters())
        # Buffers are there to be written to, by torch also without counting it.
        given = {name: host.detach() for name, host in parameters.items() if self._is_given(host)}
        here: dict[str, torch.Tensor] = {}
        try:
            for group in _group(hosts):
                here |= _copy({name: hosts[name] for name in group}, self._device, self._pause)
        except BaseException as e:
            here.clear()
            traceback.clear_frames(e.__traceback__)  # they refer to what was copied of the last one
            _free_unused()
            raise
        _replace(hosts, here)
        size = _count_bytes(here)
        here.clear()
        self.is_away = False
        self._stays = {}
        for part in self._module.modules():
            if isinstance(part, torch.nn.RNNBase):
                part.flatten_parameters()  # as `Module.to` does
        self._stays = {
            name: _Stay(host, parameters[name].detach(), _mark(parameters[name])) for name, host in given.items()
        }
        return size

    def leave(self) -> int:
        """Leave the device to others. Gives the bytes that were there."""
        tensors = self._list_tensors()
        back: dict[str, torch.Tensor] = {}
        for group in _group(tensors):
            if all(self._is_same(name, tensors[name]) for name in group):
                back |= {name: self._stays[name].host for name in group}
            else:
                back |= _copy({name: tensors[name] for name in group}, _HOST)
        size = _count_bytes(tensors)
        _replace(tensors, back)
        self._stays = {}
        self.is_away = True
        return size

    def _is_same(self, name: str, tensor: torch.Tensor) -> bool:
        stay = self._stays.get(name)
        return stay is not None and stay.mark is not None and stay.mark == _mark(tensor)

    def _list_tensors(self) -> dict[str, torch.Tensor]:
        """Each once, however often the module has it."""
        return {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not is_traceable_wrapper_subclass(tensor)


def _group(tensors: Tensors) -> list[list[str]]:
    """Names of tensors that lie in the same memory, together."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        groups[tensor.untyped_storage().data_ptr() or -id(tensor)].append(name)
    return list(groups.values())


def _copy(group: Tensors, device: torch.device, pause: Callable[[], None] = lambda: None) -> dict[str, torch.Tensor]:
    """What lies in the same memory lies in the same memory afterwards. Of the same kind, too: see `_mark`."""
    first = next(iter(group.values()))
    with torch.inference_mode(mode=first.is_inference()):
        if len(group) == 1:
            return {name: _copy_one(tensor.detach(), device, pause) for name, tensor in group.items()}
        whole = torch.empty(0, dtype=torch.uint8, device=first.device).set_(first.untyped_storage())
        storage = _copy_one(whole, device, pause).untyped_storage()
        return {
            name: torch.empty(0, dtype=tensor.dtype, device=device).set_(
                storage, tensor.storage_offset(), tensor.size(), tensor.stride()
            )
            for name, tensor in group.items()
        }


def _copy_one(tensor: torch.Tensor, device: torch.device, pause: Callable[[], None]) -> torch.Tensor:
    pause()
    if tensor.nbytes <= _PIECE_BYTES or not tensor.is_contiguous():
        return tensor.to(device, copy=True)
    made = torch.empty_like(tensor, device=device)
    rows = max(1, len(tensor) * _PIECE_BYTES // tensor.nbytes)
    for source, target in zip(tensor.split(rows), made.split(rows), strict=True):
        target.copy_(source)
        pause()
    return made


def _replace(tensors: Tensors, others: Tensors) -> None:
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


def _count_bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _free_unused() -> None:
    """Give the driver what torch only keeps for later."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
    _free_unused()
    _log(f"idle for {idle_s:g} s: {size / _MIB:,.0f} MiB left the device", began)
    return left


def _log(text: str, began_s: float) -> None:
    """Into the tenant's own log, however the tenant left its streams."""
    with contextlib.suppress(OSError):
        os.write(1, f"bedsit: {text} ({(time.monotonic() - began_s) * 1000:,.1f} ms)\n".encode(errors="replace"))
