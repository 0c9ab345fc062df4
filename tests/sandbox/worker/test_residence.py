"""Models that leave their device and come back: what is there afterwards, and whose memory it is.

The device is the host here, where a copy is as much of a copy as on a GPU.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from bedsit.sandbox.worker import residence as residence_module
from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.residence import Residence, doze
from bedsit.sandbox.worker.runners import Runner
from tests_support.packets import X as X_ROW
from tests_support.packets import Y, make_info

DEVICE = torch.device("cpu")


class Model(torch.nn.Module):
    """Has everything that a module may have: weights, one of them twice, one that is not the bundle's, and a count."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.again = self.first
        self.own = torch.nn.Parameter(torch.full((8,), 3.0))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Linear in the inputs and in how often it was called."""
        self.count += 1
        return self.again(x) + self.own + self.count


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    """One with weights, as a worker has it."""
    weights = save({"first.weight": torch.eye(8), "first.bias": torch.arange(8.0)})
    fd = os.memfd_create("bundle", os.MFD_CLOEXEC)
    os.write(fd, weights)
    yield Bundle(Path("/nonexistent"), make_info([X_ROW], [Y]).manifest, fd, {"w": (0, len(weights))})
    os.close(fd)


def make_model(bundle: Bundle) -> Model:
    """As a runner on a GPU makes it."""
    with torch.inference_mode(mode=False):
        model = Model()
        model.load_state_dict(bundle.load_weights(), strict=False, assign=True)
    model.eval().requires_grad_(requires_grad=False)
    return model


X = torch.ones(2, 8)
EXPECTED = 1 + torch.arange(8.0) + 3


@torch.inference_mode()
def test_a_model_that_comes_back_is_what_it_was(bundle: Bundle) -> None:
    """Its weights, what it made itself, and what it has counted; however often, and tied weights stay tied."""
    model = make_model(bundle)
    residence = Residence(model, DEVICE, bundle.has_given)
    size = residence.enter()
    assert size == sum(tensor.nbytes for tensor in model.state_dict().values()) - 4 * (
        64 + 8
    )  # one of them is twice there
    for times in range(1, 6):
        assert torch.equal(model(*residence.take([X])), (EXPECTED + times).expand(2, 8))
        assert not residence.is_away
        assert residence.leave() == size
        assert residence.is_away
    assert model.again.weight is model.first.weight


@torch.inference_mode()
def test_what_the_bundle_gave_is_not_copied_back(bundle: Bundle) -> None:
    """Away it lies where every worker with that bundle has it, and what was on the device is nobody's any more."""
    model = make_model(bundle)
    given = {name: tensor.data_ptr() for name, tensor in model.first.named_parameters()}
    residence = Residence(model, DEVICE, bundle.has_given)
    residence.enter()
    here = {name: tensor.data_ptr() for name, tensor in model.first.named_parameters()}
    assert not given.items() & here.items()
    for _ in range(2):
        residence.take([X])
        residence.leave()
        assert {name: tensor.data_ptr() for name, tensor in model.first.named_parameters()} == given
        assert model.own.data_ptr() % mmap.PAGESIZE or not bundle.has_given(model.own)


@torch.inference_mode()
@pytest.mark.parametrize("way", ["in place", "by an output", "by its data"])
def test_what_was_written_is_kept_and_the_bundles_copy_unchanged(bundle: Bundle, way: str) -> None:
    """A model that learns, or merges something into its weights, has that when it comes back."""
    model = make_model(bundle)
    host = model.first.weight.detach()
    residence = Residence(model, DEVICE, bundle.has_given)
    residence.enter()
    if way == "in place":
        model.first.weight.mul_(2)
    elif way == "by an output":
        torch.mul(model.first.weight, 2, out=model.first.weight)
    else:
        model.first.weight.data = model.first.weight * 2
    for _ in range(2):
        residence.leave()
        (x,) = residence.take([X])
        assert torch.equal(model.first(x), (2 + torch.arange(8.0)).expand(2, 8))
    assert torch.equal(host, torch.eye(8))


@torch.inference_mode()
def test_what_replaces_a_weight_again_and_again_is_not_taken_for_the_first(bundle: Bundle) -> None:
    """Memory that is given back is given out again: the same address says nothing where nobody holds it."""
    model = make_model(bundle)
    model.first.weight = torch.nn.Parameter(torch.eye(2048), requires_grad=False)
    given = model.first.weight.untyped_storage().data_ptr()
    residence = Residence(model, DEVICE, lambda tensor: tensor.untyped_storage().data_ptr() == given)
    residence.enter()
    for _ in range(4):
        model.first.weight.data = model.first.weight * 2
    residence.leave()
    residence.take([X])
    assert torch.equal(model.first.weight, torch.eye(2048) * 16)


@torch.inference_mode()
def test_what_torch_writes_without_counting_is_kept_in_buffers() -> None:
    """Statistics of a batch, for one: buffers are there to be written to, whoever gave them."""
    with torch.inference_mode(mode=False):
        norm = torch.nn.BatchNorm1d(8)
    residence = Residence(norm, DEVICE, lambda _: True)
    residence.enter()
    norm(torch.full((4, 8), 5.0))
    mean = norm.running_mean
    assert mean is not None
    before = mean.clone()
    assert before.abs().sum() > 0
    residence.leave()
    residence.take([])
    assert torch.equal(mean, before)


class Views(torch.nn.Module):
    """Buffers that lie in each other, as caches do."""

    cache: torch.Tensor
    row: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(2, 8))
        self.register_buffer("row", self.cache[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What was written to one is in the other."""
        self.row.copy_(x)
        return self.cache.sum()


@torch.inference_mode()
def test_what_lies_in_the_same_memory_does_so_everywhere() -> None:
    """On the device, away, and back again."""
    with torch.inference_mode(mode=False):
        model = Views()
    residence = Residence(model, DEVICE)
    for value in (1.0, 2.0, 3.0):
        residence.enter()
        assert model(torch.full((8,), value)) == 8 * value
        residence.leave()
        assert model(torch.full((8,), value + 0.5)) == 8 * (value + 0.5)
        assert model.cache[0].sum() == 0


@torch.inference_mode()
def test_others_have_their_turn_between_pieces(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes long to come back keeps nobody waiting for all of it."""
    monkeypatch.setattr(residence_module, "_PIECE_BYTES", 64)
    model = make_model(bundle)
    pauses: list[int] = []
    residence = Residence(model, DEVICE, bundle.has_given, lambda: pauses.append(1))
    residence.enter()
    assert torch.equal(model(X), (EXPECTED + 1).expand(2, 8))
    assert len(pauses) == 4 + 4  # tensors, and pieces of the one that is larger than one
    residence.leave()
    assert len(pauses) == 8


@torch.inference_mode()
def test_who_is_told_to_stop_between_pieces_is_where_it_was(bundle: Bundle) -> None:
    """The router is gone, and nobody wants the answer."""
    model = make_model(bundle)
    left = [3]

    def pause() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("nobody waits for it")

    residence = Residence(model, DEVICE, bundle.has_given, pause)
    residence.is_away = True
    with pytest.raises(RuntimeError, match="nobody waits"):
        residence.take([X])
    assert residence.is_away
    (x,) = residence.take([X])
    assert not residence.is_away
    assert torch.equal(model(x), (EXPECTED + 1).expand(2, 8))


@torch.inference_mode()
def test_tensors_of_other_kinds_stay_where_they_are_put() -> None:
    """Sparse ones, and those that only stand for others."""
    with torch.inference_mode(mode=False):
        module = torch.nn.Linear(8, 8)
        module.register_buffer("sparse", torch.eye(8).to_sparse())
    residence = Residence(module, DEVICE)
    assert not residence.can_leave
    assert residence.enter() == 0
    assert not residence.is_away


class Lstm(torch.nn.LSTM):
    """One whose weights are put into one piece, as a GPU has them."""

    def flatten_parameters(self) -> None:
        """Fails at first."""
        if getattr(self, "fails", False):
            raise RuntimeError("no room for that")
        flat = torch.cat([weight.detach().flatten() for weight in self.parameters()])
        at = 0
        for weight in self.parameters():
            weight.data = flat[at : at + weight.numel()].view_as(weight)
            at += weight.numel()


def test_weights_that_are_put_into_one_piece_are_the_bundles_all_the_same() -> None:
    """And what fails at that costs a request, no more."""
    lstm = Lstm(4, 4).eval().requires_grad_(requires_grad=False)
    given = {name: weight.data_ptr() for name, weight in lstm.named_parameters()}
    storages = {weight.untyped_storage().data_ptr() for weight in lstm.parameters()}
    x = torch.ones(1, 2, 4)
    (before, _) = lstm(x)
    residence = Residence(lstm, DEVICE, lambda tensor: tensor.untyped_storage().data_ptr() in storages)
    residence.enter()
    residence.leave()
    assert {name: weight.data_ptr() for name, weight in lstm.named_parameters()} == given
    lstm.fails = True
    with pytest.raises(RuntimeError, match="no room"):
        residence.take([x])
    assert not residence.is_away
    assert torch.equal(lstm(x)[0], before)
    residence.leave()
    lstm.fails = False
    assert torch.equal(lstm(*residence.take([x]))[0], before)


@torch.inference_mode()
def test_what_a_factory_made_in_inference_mode_is_copied(bundle: Bundle) -> None:
    """Torch does not count writes to it, so nobody knows whether it is what the bundle gave."""
    model = Model()
    model.load_state_dict(bundle.load_weights(), strict=False, assign=True)
    residence = Residence(model, DEVICE, bundle.has_given)
    residence.enter()
    model.first.weight.mul_(2)
    residence.leave()
    assert torch.equal(model.first(*residence.take([X])), (2 + torch.arange(8.0)).expand(2, 8))


@torch.inference_mode()
def test_a_device_that_does_not_take_it_leaves_it_as_it_was(bundle: Bundle) -> None:
    """The request fails with what the device said, the next one tries again."""
    model = make_model(bundle)
    residence = Residence(model, torch.device("meta"), bundle.has_given)
    residence.is_away = True
    for _ in range(2):
        with pytest.raises(RuntimeError):
            residence.take([X])
        assert residence.is_away
    assert torch.equal(model(X), (EXPECTED + 1).expand(2, 8))


@torch.inference_mode()
def test_who_cannot_leave_stays_and_the_others_go(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """The tenant's log says how much went, how long it took, and who stayed."""
    model = make_model(bundle)
    good = Residence(model, DEVICE, bundle.has_given)
    good.enter()

    class Bad(Residence):
        def leave(self) -> int:
            raise RuntimeError("not this one")

    bad = Bad(make_model(bundle), DEVICE)
    assert doze([bad, good], 60.0) == [good]
    assert (good.is_away, bad.is_away) == (True, False)
    said = capfd.readouterr().out
    assert "bedsit: a model stays on the device: not this one" in said
    assert "bedsit: idle for 60 s: 0 MiB left the device (" in said
    good.take([X])
    assert "bedsit: 0 MiB came back to the device (" in capfd.readouterr().out


@torch.inference_mode()
def test_a_runner_takes_inputs_to_the_model_wherever_it_is(bundle: Bundle) -> None:
    """A request that finds it away gets the same answer."""
    model = make_model(bundle)
    residence = Residence(model, DEVICE, bundle.has_given)
    residence.enter()
    runner = Runner(bundle, model, residence)
    (before,) = runner.run([X])
    residence.leave()
    (after,) = runner.run([X])
    assert torch.equal(after, before + 1)


class Abroad(torch.Tensor):
    """One that says that it is on a device."""

    is_cpu = False  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl


@pytest.mark.parametrize("answer", ["one", "tuple", "table"])
def test_outputs_on_a_device_come_home_with_the_call(bundle: Bundle, answer: str) -> None:
    """Before its turn is over, and whoever has put the model there."""
    made = torch.arange(8.0).as_subclass(Abroad)
    runner = Runner(bundle, lambda _: {"one": made, "tuple": (made,), "table": {"y": made}}[answer])
    (y,) = runner.run([X])
    assert type(y) is torch.Tensor
    assert torch.equal(y, torch.arange(8.0))
