"""Real workers with good and bad bundles: what they report, and how they end."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from bedsit import BedsitError, Client
from bedsit.ipc.manifest import DTYPES
from bedsit.ipc.slot import MAX_REPORT, Report
from bedsit.sandbox.worker.tensors import TORCH_DTYPES

TOML = """
name = "gate"
runner = "python"
entry = "model:build"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1]
"""
WITH_WEIGHTS = TOML.replace("[[inputs]]", 'weights = ["w.safetensors"]\n[[inputs]]', 1)


def _failure(plane: Any, files: dict[str, str | bytes], name: str = "gate") -> tuple[str, str]:
    """(code, message) with which a worker reports that it cannot load; it must then end by itself."""
    slot = plane.start_worker("acme", [files], [name])
    while True:
        kind, index, text = plane.next_report(slot)
        assert kind in (Report.PROGRESS, Report.FAILED)
        assert index == 0
        if kind == Report.FAILED:
            break
    assert len(text) < MAX_REPORT
    plane.workers[slot].wait()
    code, _, message = text.decode().partition("\n")
    return code, message


def _bundle(code: str, toml: str = TOML) -> dict[str, str | bytes]:
    return {"bedsit.toml": toml, "model.py": code}


def _call(plane: Any, value: float = 1.0, model: str = "gate", tenant: str = "acme") -> Any:
    with Client(tenant, run_dir=str(plane.run_dir)) as client:
        return client.infer(model, {"x": np.array([value], np.float32)}, timeout_s=60)["y"]


def test_every_way_of_not_loading_is_reported(plane: Any) -> None:
    """Code that raises, leaves, is missing or gives nothing to call: FAILED with code and cause, then the end."""
    for code, expected, text in (
        ("raise ValueError('at import')", "model.load_failed", "ValueError: at import"),
        ("def build(bundle):\n    raise KeyError('in build')", "model.load_failed", "in build"),
        ("import sys\nsys.exit(3)", "model.load_failed", "SystemExit: 3"),
        ("def build(bundle):\n    raise SystemExit", "model.load_failed", "SystemExit"),
        ("def buidl(bundle): ...", "model.load_failed", "'build'"),
        ("def build(bundle):\n    return 7", "model.load_failed", "a int"),
        ("def build(:", "model.load_failed", "SyntaxError"),
        ("import nothing_like_this", "model.load_failed", "nothing_like_this"),
        ("raise ValueError('\\udc80' + 'x' * 10**6)", "model.load_failed", "ValueError"),
        ("def build(b): b.load_weights('w')", "bundle.invalid", "'w'"),
        ("from bedsit.ipc.errors import *\nraise error('internal', 'm' * 10**6)", "model.load_failed", "internal"),
        ("from bedsit.ipc.errors import *\nraise BedsitError('a\\nb', 'x')", "model.load_failed", "BedsitError"),
        ("class E(Exception):\n    def __str__(self): raise E\nraise E", "model.load_failed", "E"),
    ):
        got = _failure(plane, _bundle(code))
        assert got[0] == expected, (code, got)
        assert text in got[1], (code, got)
    assert _failure(plane, _bundle("", TOML.replace("gate", "other")))[0] == "bundle.invalid"
    assert _failure(plane, {"bedsit.toml": TOML})[0] == "model.load_failed"
    assert _failure(plane, {"model.py": "", "bedsit.toml": "x"})[0] == "bundle.invalid"


def test_a_model_that_ends_the_process_at_import_leaves_no_report(plane: Any) -> None:
    """``os._exit`` and a signal cannot be reported by the worker: its end is the report, and init's to tell."""
    for code in ("import os\nos._exit(3)", "import os\nos.kill(os.getpid(), 9)"):
        slot = plane.start_worker("acme", [_bundle(code)], ["gate"])
        kinds = set()
        while (report := plane.next_report(slot)[0]) != 0:
            kinds.add(report)
        assert kinds == {Report.PROGRESS}
        plane.workers[slot].wait()


def test_a_second_model_that_does_not_load_is_named_by_its_index(plane: Any) -> None:
    """A slot with a part of its models is of no use: the failure names the model, and the worker ends."""
    good, bad = _bundle("def build(bundle): return lambda x: x"), _bundle("1/0", TOML.replace("gate", "bad"))
    slot = plane.start_worker("acme", [good, bad], ["gate", "bad"])
    while (report := plane.next_report(slot))[0] != Report.FAILED:
        assert report[0] in (Report.PROGRESS, Report.LOADED)
    assert report[1] == 1
    plane.workers[slot].wait()


def test_the_longest_manifest_fits_into_its_report(plane: Any) -> None:
    """A manifest near the limit is reported in one packet below 64 KiB."""
    weights = [f"{'d' * 200}/{i:03}.safetensors" for i in range(250)]
    empty = save({})
    files = _bundle(
        "def build(bundle): return lambda x: x", TOML.replace("[[inputs]]", f"weights = {weights}\n[[inputs]]", 1)
    )
    slot = plane.start_worker("acme", [files | dict.fromkeys(weights, empty)], ["gate"])
    while (report := plane.next_report(slot))[0] != Report.LOADED:
        assert report[0] == Report.PROGRESS
    assert 50_000 < len(report[2]) + 3 < MAX_REPORT


def test_two_bundles_may_have_modules_of_the_same_name(plane: Any) -> None:
    """Modules, packages and namespace packages of equal names do not get into each other's way."""
    code = """
import part, pack.deep, space.far
def build(bundle):
    v = part.V + pack.deep.V + space.far.V
    return lambda x: x + v
"""

    def files(name: str, value: int) -> dict[str, str | bytes]:
        return {
            "bedsit.toml": TOML.replace("gate", name),
            "model.py": code,
            "part.py": f"V = {value}",
            "pack/__init__.py": "",
            "pack/deep.py": f"V = {value}",
            "space/far.py": f"V = {value}",
        }

    plane.add_slot("acme", [files("one", 1), files("two", 100)])
    assert _call(plane, 1.0, "one")[0] == 4.0
    assert _call(plane, 1.0, "two")[0] == 301.0


def test_outputs_may_be_a_tensor_a_tuple_or_a_table(plane: Any) -> None:
    """All three forms of an answer, and every wrong one, which is ``output.invalid`` and nothing worse."""
    toml = TOML.replace("[[outputs]]", '[[outputs]]\nname = "z"\ndtype = "int64"\nshape = []\n[[outputs]]', 1)
    code = """
import torch
def build(bundle):
    z = torch.tensor(7)
    def call(x):
        return [
            lambda: (z, x), lambda: [z, x], lambda: {"y": x, "z": z, "more": x},
            lambda: x, lambda: (z,), lambda: (z, x, x), lambda: {"y": x}, lambda: None, lambda: (z, x.numpy()),
            lambda: (z, x.double()), lambda: (z, x[None]), lambda: (x, z), lambda: "zx", lambda: (z, 1.0),
        ][int(x[0])]()
    return call
"""
    plane.add_slot("acme", [_bundle(code, toml)])
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        for order in range(14):
            x = np.array([order, 5], np.float32)
            if order < 3:
                got = client.infer("gate", {"x": x})
                assert (got["z"].shape, int(got["z"]), got["y"].tolist()) == ((), 7, [order, 5])
            else:
                with pytest.raises(BedsitError) as caught:
                    client.infer("gate", {"x": x})
                assert caught.value.code == "output.invalid", order


@pytest.mark.parametrize("lane", ["fast", "zmq"])
def test_every_dtype_and_empty_tensors_travel_from_client_to_model_and_back(plane: Any, lane: Any) -> None:
    """Each dtype through a real worker: small inline, large by reference, and without any element."""
    ins = "".join(f'[[inputs]]\nname = "{d}"\ndtype = "{d}"\nshape = [-1, -1]\n' for d in DTYPES)
    outs = "".join(f'[[outputs]]\nname = "{d}"\ndtype = "{d}"\nshape = [-1, -1]\n' for d in DTYPES)
    toml = TOML.split("[[inputs]]", maxsplit=1)[0] + ins + outs
    plane.add_slot("acme", [_bundle("def build(bundle):\n    return lambda *x: [t.T.T for t in x]\n", toml)])
    with Client("acme", run_dir=str(plane.run_dir), lane=lane, tensors="torch") as client:
        for shape in ((2, 3), (0, 3), (3, 0), (100, 70)):
            tensors = {d: (torch.arange(shape[0] * shape[1]) % 2).reshape(shape).to(TORCH_DTYPES[d]) for d in DTYPES}
            got = client.infer("gate", tensors, timeout_s=60)
            for dtype, tensor in tensors.items():
                assert (got[dtype].dtype, got[dtype].shape) == (tensor.dtype, tensor.shape)
                assert not tensor.numel() or got[dtype].view(torch.uint8).equal(tensor.view(torch.uint8)), dtype


@pytest.mark.parametrize("lane", ["fast", "zmq"])
def test_a_model_may_write_its_answer_where_the_caller_will_read_it(plane: Any, lane: Any) -> None:
    """``bundle.output`` in a real worker: the right answers, whether there was room in the caller's memory or not."""
    code = """
import torch
def build(bundle):
    def call(x):
        return torch.add(x, 1, out=bundle.output("y", x.shape))
    return call
"""
    plane.add_slot("acme", [_bundle(code)])
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        for size in (0, 3, 5000, 3, 100_000):
            with client.infer("gate", {"x": np.arange(size, dtype=np.float32)}, timeout_s=60) as got:
                assert got["y"].shape == (size,)
                assert (got["y"] == np.arange(size) + 1).all()


@pytest.mark.parametrize("lane", ["fast", "zmq"])
def test_requests_of_a_batched_model_get_the_answers_of_single_calls(plane: Any, lane: Any) -> None:
    """Of different lengths, some in the packet and some in the arena, filled up and run together in a real worker."""
    code = """
def build(bundle):
    def call(x):
        with (bundle.path / "calls").open("a") as calls:
            calls.write(f"{len(x)}\\n")
        if (x == 13).any():
            raise ValueError("thirteen")
        return x + 1
    return call
"""
    toml = TOML.replace("shape = [-1]", "shape = [-1, -1]") + "[batch]\nmax_rows = 8\ndelay_ms = 20\npad = 0\n"
    slot = plane.add_slot("acme", [_bundle(code, toml)])
    requests = [{"x": np.full((1, n % 5 + (3000 if n % 7 == 0 else 0)), 100 + n, np.float32)} for n in range(64)]
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        for request, got in zip(requests, client.infer_many("gate", requests, timeout_s=60), strict=True):
            assert got["y"].tolist() == (request["x"] + 1).tolist()
        requests[5] = {"x": np.full((1, 4), 13, np.float32)}
        with pytest.raises(BedsitError) as caught:
            client.infer_many("gate", requests, timeout_s=60)
        assert caught.value.code == "model.failed"
        assert client.infer("gate", requests[4], timeout_s=60)["y"].tolist() == (requests[4]["x"] + 1).tolist()
    calls = [int(line) for line in (plane.folder_of(slot) / "calls").read_text().split()]
    assert 1 < max(calls) <= 8


class _Doubler(torch.nn.Module):
    """What is exported below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice the input, and one."""
        return x * 2 + 1


@pytest.mark.slow
def test_an_exported_program_runs_end_to_end(plane: Any) -> None:
    """A ``.pt2`` with a free dimension, loaded in a real worker, answers for several sizes.

    As root, because loading one imports modules late, and without a jail the interpreter may be root's alone.
    """
    buffer = io.BytesIO()
    free = torch.export.Dim("n", min=2, max=4096)
    torch.export.save(torch.export.export(_Doubler(), (torch.ones(8),), dynamic_shapes={"x": {0: free}}), buffer)
    toml = TOML.replace('"python"', '"torch-export"').replace('"model:build"', '"model.pt2"')
    plane.add_slot("acme", [{"bedsit.toml": toml, "model.pt2": buffer.getvalue()}], uid=0)
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        for size in (2, 8, 3000):
            y = client.infer("gate", {"x": np.full(size, 3.0, np.float32)}, timeout_s=60)["y"]
            assert y.tolist() == [7.0] * size
        # Outside of what was exported the program itself refuses.
        with pytest.raises(BedsitError) as caught:
            client.infer("gate", {"x": np.full(5000, 3.0, np.float32)}, timeout_s=60)
        assert caught.value.code == "model.failed"


def test_a_broken_program_does_not_load(plane: Any) -> None:
    """Bytes that are no exported program are ``model.load_failed``."""
    toml = TOML.replace('"python"', '"torch-export"').replace('"model:build"', '"model.pt2"')
    assert _failure(plane, {"bedsit.toml": toml, "model.pt2": b"PK\x05\x06" + bytes(18)})[0] == "model.load_failed"


def test_weights_of_an_artifact_are_private_to_each_worker(plane: Any) -> None:
    """Two tenants' workers map the same artifact; one overwrites its weights, the other and the file never see it."""
    code = """
def build(bundle):
    w = bundle.load_weights()["w"]
    def call(x):
        if x[0] > 0:
            w.fill_(float(x[0]))
        return w[-1:].clone()
    return call
"""
    files = _bundle(code, WITH_WEIGHTS) | {"w.safetensors": save({"w": torch.full((100_000,), -5.0)})}
    plane.add_slot("acme", [files])
    plane.add_slot("beta", [files])
    (artifact,) = (plane.run_dir / "artifacts").iterdir()
    assert _call(plane, 9.0)[0] == 9.0
    assert _call(plane, -1.0)[0] == 9.0
    assert _call(plane, -1.0, tenant="beta")[0] == -5.0
    assert hashlib.sha256(artifact.read_bytes()).hexdigest() == artifact.name
    # Nothing was copied for whoever only reads: the file's own pages are mapped.
    for slot, worker in plane.workers.items():
        assert str(artifact) in Path(f"/proc/{worker.pid}/maps").read_text(), slot


def test_a_module_gets_the_bundles_weights_unless_it_asked_for_them(plane: Any) -> None:
    """One weights file is loaded into an ``nn.Module`` by name; what does not fit is a failure to load."""
    code = """
import torch
class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(3))
        self.train()
    def forward(self, x):
        assert not self.training and not self.w.requires_grad
        return x + self.w.sum()
def build(bundle): return M()
"""
    weights = {"w.safetensors": save({"w": torch.full((3,), 10.0)})}
    plane.add_slot("acme", [_bundle(code, WITH_WEIGHTS) | weights])
    assert _call(plane)[0] == 31.0
    wrong = {"w.safetensors": save({"v": torch.zeros(3)})}
    code, message = _failure(plane, _bundle(code, WITH_WEIGHTS) | wrong)
    assert code == "model.load_failed"
    assert "w" in message


def test_errors_of_a_model_are_cut_to_what_travels(plane: Any) -> None:
    """However long or odd what a model raises is, the caller gets ``model.failed`` and the worker lives."""
    code = """
from bedsit.ipc.errors import BedsitError, error
class Odd(Exception):
    def __str__(self): raise ValueError
def build(bundle):
    def call(x):
        what = int(x[0])
        if what == 1: raise RuntimeError("x" * 10**6)
        if what == 2: raise BedsitError("model.failed", "x" * 10**6)
        if what == 3: raise error("model.failed", "x", detail={"n": object()})
        if what == 4: raise Odd
        if what == 5: raise BedsitError("router.restarted", "not true")
        if what == 6: raise RuntimeError("\\udcff")
        return x
    return call
"""
    slot = plane.add_slot("acme", [_bundle(code)])
    for order in range(1, 7):
        with pytest.raises(BedsitError) as caught:
            _call(plane, order)
        assert caught.value.code == "model.failed", order
        assert len(caught.value.message) < 4096
    assert _call(plane, 0.0)[0] == 0.0
    assert len(plane.workers) == 1
    assert "RuntimeError" in plane.workers[slot].log.read_text()
