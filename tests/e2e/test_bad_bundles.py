"""What a bundle that cannot be served gets: a clear error, and the tenant as it was."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bedsit import Client
from tests_support.box import Box
from tests_support.bundles import DOUBLE, write_bundle

RAISES = "raise RuntimeError('no licence found')\n"
EXITS = "import os\nos._exit(5)\n"
LEAVES = "import sys\nsys.exit(4)\n"
HANGS = "import time\ntime.sleep(3600)\n"
NO_ENTRY = "def make(bundle):\n    return None\n"
NOT_CALLABLE = "def build(bundle):\n    return 42\n"


@pytest.fixture
def tenant(shared_box: Box, tmp_path: Path) -> Iterator[Box]:
    """Tenant ``t`` with the model ``double`` at version 1."""
    shared_box.json("tenant", "create", "t")
    shared_box.json("model", "deploy", "t", str(write_bundle(tmp_path / "good", "double", DOUBLE)))
    yield shared_box
    shared_box.read("tenant", "delete", "t", "--yes")


def state(box: Box) -> object:
    """What must not change when a deploy fails."""
    shown = box.json("tenant", "show", "t")
    return shown["worker_pid"], shown["state"], box.json("model", "list", "t")


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        (RAISES, "model.load_failed", "no licence found"),
        (EXITS, "worker.crashed", "exit status 5"),
        (LEAVES, "model.load_failed", "SystemExit: 4"),
        (NO_ENTRY, "model.load_failed", "build"),
        (NOT_CALLABLE, "model.load_failed", "int"),
    ],
    ids=["raises", "exits", "sys-exits", "no-entry", "not-callable"],
)
def test_code_that_does_not_load(tenant: Box, tmp_path: Path, code: str, error: str, says: str) -> None:
    """The error says what happened; the version that served before serves on, in the same worker."""
    before = state(tenant)

    failed = tenant.run("model", "deploy", "t", str(write_bundle(tmp_path, "double", code)), "--replace")

    assert failed.returncode == 1
    assert error in failed.stderr
    assert says in failed.stderr
    assert state(tenant) == before
    with Client("t", run_dir=str(tenant.run_dir)) as client:
        assert (client.infer("double", {"x": np.ones(2, np.float32)})["y"] == 2).all()


def test_code_that_hangs(tenant: Box, tmp_path: Path) -> None:
    """Loading that never ends is ended at its deadline."""
    before = state(tenant)

    failed = tenant.run(
        "model", "deploy", "t", str(write_bundle(tmp_path, "double", HANGS)), "--replace", "--timeout", "2s"
    )

    assert failed.returncode == 8
    assert "deadline.exceeded" in failed.stderr
    assert state(tenant) == before


def test_symlink(tenant: Box, tmp_path: Path) -> None:
    """A link in a bundle is refused before anything is sent."""
    before = state(tenant)
    bundle = write_bundle(tmp_path, "double", DOUBLE)
    os.symlink("/etc/shadow", bundle / "secret")

    failed = tenant.run("model", "deploy", "t", str(bundle), "--replace")

    assert failed.returncode == 2
    assert "bundle.invalid" in failed.stderr
    assert "secret" in failed.stderr
    assert state(tenant) == before


def test_missing_file(tenant: Box, tmp_path: Path) -> None:
    """Weights that are declared but not there are named."""
    bundle = write_bundle(tmp_path, "double", DOUBLE)
    text = (bundle / "bedsit.toml").read_text()
    (bundle / "bedsit.toml").write_text(text.replace("idempotent", 'weights = ["w.safetensors"]\nidempotent', 1))

    failed = tenant.run("model", "deploy", "t", str(bundle), "--replace")

    assert failed.returncode == 2
    assert "w.safetensors" in failed.stderr


def test_broken_weights(tenant: Box, tmp_path: Path) -> None:
    """A safetensors file with a lying header is refused by the slot that reads it."""
    before = state(tenant)
    code = "import torch\n\ndef build(bundle):\n    return torch.nn.Linear(2, 2)\n"
    bundle = write_bundle(tmp_path, "double", code)
    text = (bundle / "bedsit.toml").read_text()
    (bundle / "bedsit.toml").write_text(text.replace("idempotent", 'weights = ["w.safetensors"]\nidempotent', 1))
    (bundle / "w.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")

    failed = tenant.run("model", "deploy", "t", str(bundle), "--replace")

    assert failed.returncode in (1, 2)
    assert "safetensors" in failed.stderr
    assert state(tenant) == before


def test_unknown_key_names_the_nearest(tenant: Box, tmp_path: Path) -> None:
    """`entri = ...` is answered with the nearest key that there is."""
    bundle = write_bundle(tmp_path, "double", DOUBLE)
    text = (bundle / "bedsit.toml").read_text()
    (bundle / "bedsit.toml").write_text(text.replace("entry", "entri"))

    failed = tenant.run("model", "deploy", "t", str(bundle), "--replace")

    assert failed.returncode == 2
    assert "did you mean 'entry'" in failed.stderr


def test_unknown_tenant(tenant: Box, tmp_path: Path) -> None:
    """Deploying to nobody is not found."""
    failed = tenant.run("model", "deploy", "nobody", str(write_bundle(tmp_path, "double", DOUBLE)))

    assert failed.returncode == 4
    assert "tenant.not_found" in failed.stderr
