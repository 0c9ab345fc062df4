"""The caller's memory lent to the model that runs: exactly as long, as large and as typed as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bedsit.ipc.manifest import DTYPES, TensorSpec
from bedsit.ipc.wire import Region
from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.rooms import Rooms
from bedsit.sandbox.worker.tensors import TORCH_DTYPES
from tests_support.packets import make_info
from tests_support.workers import make_mapped

PAGE = 4096
SIZE = 16 * PAGE
SPECS = (TensorSpec("y", "float32", (-1,)), TensorSpec("z", "bfloat16", (-1, -1)))
REGIONS = (Region(PAGE, PAGE), Region(4 * PAGE, 2 * PAGE))


def _lies_at(tensor: torch.Tensor, offset: int, arena: Any) -> bool:
    return tensor.data_ptr() == arena.address + offset


def _is_its_own(tensor: torch.Tensor, arena: Any) -> bool:
    return not arena.address <= tensor.data_ptr() < arena.address + SIZE


def test_an_output_lies_in_the_callers_memory() -> None:
    """Of the declared dtype, of any shape that fits, writable; what is written is in the arena."""
    rooms, arena = Rooms(SPECS), make_mapped()
    rooms.lend(REGIONS, arena)
    y = rooms.output("y", (10, 2))
    assert (y.shape, y.dtype) == ((10, 2), torch.float32)
    assert _lies_at(y, PAGE, arena)
    y.fill_(1.0)
    assert arena.pages[PAGE : PAGE + 84] == b"\x00\x00\x80\x3f" * 20 + bytes(4)
    z = rooms.output("z", [3, 4])
    assert (z.shape, z.dtype) == ((3, 4), torch.bfloat16)
    assert _lies_at(z, 4 * PAGE, arena)
    assert _lies_at(rooms.output("y", torch.Size([PAGE // 4])), PAGE, arena)
    assert _lies_at(rooms.output("y", (3,), torch.float32), PAGE, arena)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_room(dtype: str) -> None:
    """A region has no dtype of its own."""
    rooms, arena = Rooms([TensorSpec("y", dtype, (-1,))]), make_mapped()
    rooms.lend([Region(PAGE, PAGE)], arena)
    y = rooms.output("y", (5,))
    assert y.dtype == TORCH_DTYPES[dtype]
    assert _lies_at(y, PAGE, arena)


def test_whatever_does_not_fit_gets_memory_of_its_own() -> None:
    """Too large, of another dtype, or without an element: a tensor as it was asked for, outside of the arena."""
    rooms, arena = Rooms(SPECS), make_mapped()
    rooms.lend(REGIONS, arena)
    for shape, dtype in (
        ((PAGE // 4 + 1,), None),
        ((PAGE,), None),
        ((4,), torch.float64),
        ((4,), torch.int32),
        ((0,), None),
    ):
        y = rooms.output("y", shape, dtype)
        assert (tuple(y.shape), y.dtype) == (shape, dtype or torch.float32)
        assert _is_its_own(y, arena)
        y.zero_()
    assert _is_its_own(rooms.output("z", (4,), torch.float16), arena)


def test_outside_of_a_call_there_is_no_room() -> None:
    """Before the first one, after each, while a batch runs, and where the caller reserved none."""
    rooms, arena = Rooms(SPECS), make_mapped()
    for lent in (None, ((), None), ((), arena), (REGIONS, None)):
        if lent is not None:
            rooms.lend(*lent)
        y = rooms.output("y", (3,))
        assert (y.shape, y.dtype) == ((3,), torch.float32)
        assert _is_its_own(y, arena)
    rooms.lend(REGIONS, arena)
    rooms.lend((), None)
    assert _is_its_own(rooms.output("y", (3,)), arena)
    rooms.lend(REGIONS[:1], arena)
    assert _lies_at(rooms.output("y", (3,)), PAGE, arena)
    assert _is_its_own(rooms.output("z", (3, 1)), arena)


@pytest.mark.parametrize(
    "region", [Region(SIZE, PAGE), Region(SIZE - 64, 128), Region(1 << 40, PAGE), Region(PAGE + 4, 64)]
)
def test_a_region_that_lies_is_not_lent(region: Region) -> None:
    """It is checked against this worker's own mapping before a model may write there."""
    rooms, arena = Rooms(SPECS), make_mapped()
    rooms.lend([region, region], arena)
    assert _is_its_own(rooms.output("y", (3,)), arena)


def test_an_output_nobody_declared_is_a_mistake() -> None:
    """Also while nothing is lent, so that it is found before the first large request."""
    rooms = Rooms(SPECS)
    for lend in (False, True):
        if lend:
            rooms.lend(REGIONS, make_mapped())
        with pytest.raises(KeyError):
            rooms.output("w", (3,))


def test_a_bundle_gives_rooms_by_name() -> None:
    """What a factory is given is what its model asks when it runs."""
    info = make_info(outputs=[("y", "float32", (-1,)), ("z", "bfloat16", (-1, -1))])
    bundle, arena = Bundle(Path("/nonexistent"), info.manifest, -1, {}), make_mapped()
    assert _is_its_own(bundle.output("y", (3,)), arena)
    bundle.rooms.lend(REGIONS, arena)
    assert _lies_at(bundle.output("z", (3, 2)), 4 * PAGE, arena)
    assert _is_its_own(bundle.output("z", (3, 2), torch.float32), arena)
