"""Models on the device of their slot: who is put there, and when they leave it again. No such device is here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bedsit.sandbox.worker import serve
from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.lanes import Lanes
from bedsit.sandbox.worker.runners import python as python_runner
from bedsit.sandbox.worker.runners.python import load_python
from tests_support.packets import X, Y, make_info

DEVICE = torch.device("meta")


class Placed:
    """Stands for a residence, and says what it was made of."""

    can_leave = True

    def __init__(self, module: Any, device: torch.device, is_given: Any, pause: Any) -> None:
        self.module, self.device, self.is_given, self.pause = module, device, is_given, pause
        self.is_away = True

    def enter(self) -> None:
        """It is there."""
        self.is_away = False


def load(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str, device: torch.device = DEVICE) -> Any:
    """What the runner makes of a factory, on that device."""
    (folder / "model.py").write_text(f"import torch\n{code}")
    monkeypatch.setattr(python_runner, "Residence", Placed)
    manifest = make_info([X], [Y], entry="model:build").manifest
    bundle = Bundle(folder, manifest, -1, {})
    bundle.device = device
    return load_python(bundle)


def test_a_module_on_the_cpu_is_put_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what it asks for as room for outputs is there, too."""
    runner = load(monkeypatch, tmp_path, "def build(bundle): return torch.nn.Linear(2, 2)")
    assert isinstance(runner.residence, Placed)
    assert not runner.residence.is_away
    assert runner.residence.device == DEVICE
    assert runner.bundle.output("y", (3,)).device == DEVICE
    assert runner.rooms.at_home("y", (3,), torch.float32).is_cpu


@pytest.mark.parametrize(
    "code",
    [
        "def build(bundle): return lambda x: x",
        "def build(bundle): return torch.nn.Linear(2, 2, device=bundle.device)",
        "def build(bundle): return torch.nn.Identity()",
    ],
)
def test_whoever_is_on_its_own_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """A function, a module that its factory has put somewhere, and one that has nothing to be put."""
    runner = load(monkeypatch, tmp_path, code)
    assert runner.residence is None
    assert runner.bundle.output("y", (3,)).is_cpu


def test_without_a_device_nobody_is_put_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on most boxes."""
    runner = load(monkeypatch, tmp_path, "def build(bundle): return torch.nn.Linear(2, 2)", torch.device("cpu"))
    assert runner.residence is None


class Over(Exception):
    """The story has ended."""


@pytest.mark.parametrize(
    ("doze_s", "told"),
    [(5.0, ["wait 5.0", "doze", "batch", "wait 5.0", "batch", "wait 5.0", "doze", "batch"]), (0.0, ["batch"] * 4)],
)
def test_a_worker_that_nobody_asks_has_its_models_leave(
    monkeypatch: pytest.MonkeyPatch, doze_s: float, told: list[str]
) -> None:
    """Once, and again after the next request; never where that is not wanted."""
    story: list[str] = []
    comes = iter([False, True, False])
    home: Any = Placed(None, DEVICE, None, None)
    home.is_away = False

    class Story(Lanes):
        def __init__(self, *_: Any) -> None:
            pass

        def wait(self, timeout_s: float) -> bool:
            story.append(f"wait {timeout_s}")
            return next(comes)

        def next_batch(self, *, look: bool) -> Any:
            del look
            if len(story) >= len(told) - 1:
                story.append("batch")
                raise Over
            story.append("batch")
            home.is_away = False  # it has come back for that
            return []

    def doze(residences: list[Any], idle_s: float) -> list[Any]:
        assert idle_s == doze_s
        story.append("doze")
        for each in residences:
            each.is_away = True
        return residences

    class Calls:
        def __init__(self, *_: Any) -> None:
            pass

        def answer(self, *_: Any) -> None:
            """Nothing was asked."""

    monkeypatch.setattr(serve, "Lanes", Story)
    monkeypatch.setattr(serve, "Calls", Calls)
    monkeypatch.setattr(serve, "doze", doze)

    class Runner:
        residence = home

        class bundle:  # noqa: N801 - as the attribute is called
            turns: Any = None

    class Control:
        send: Callable[[Any, bytes], int] = lambda _self, data: len(data)

    models: Any = {(1, 1): Runner}
    control: Any = Control()
    with pytest.raises(Over):
        serve._serve(control, models, "/nonexistent", doze_s)
    assert story == told
