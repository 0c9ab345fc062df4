"""Triton (the server that nvidia-pytriton carries) with its Python backend: a stub process per model, asked over HTTP.

Two rivals, one server: tensors in the body (its binary tensor extension), and tensors in memory that client and server
map (its system shared memory extension), where the body only says where they are.
"""

import json
import mmap
import os
import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from bench.rivals.http import HOST, Connection
from bench.rivals.models import MAX_BATCH, MAX_WAIT_MS, MODELS, Array, Model
from bench.rivals.rival import ROOT, Command, Place, Rival

# With numpy 2 the backend reads every answer as empty.
_REQUIREMENTS: Final = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
_SHM: Final = Path("/dev/shm")  # noqa: S108 - where shm_open(3) keeps its objects


def _make_commands(place: Place, models: Sequence[str]) -> Sequence[Command]:
    packages = place.find_packages()
    root = packages / "pytriton/tritonserver"
    backend = place.folder / "backends/python"
    shutil.copytree(root / "backends/python", backend)
    # The server looks for the stub, which is linked to one version of Python, beside the backend only.
    version = sysconfig.get_python_version()
    shutil.copy2(root / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    # The stub's interpreter heeds neither PYTHONPATH nor a virtual environment.
    paths = [str(ROOT), str(packages), sysconfig.get_path("purelib")]
    for name in models:
        _write_model(place.folder / "models" / name, MODELS[name], paths)
    argv = [
        *(root / "bin/tritonserver", "--model-repository", place.folder / "models"),
        *("--backend-directory", backend.parent, "--allow-grpc", "false", "--allow-metrics", "false"),
        *("--http-address", HOST, "--http-port", place.ports[0], "--log-info", "false"),
        *("--backend-config", f"python,shm-region-prefix-name={place.folder.name}"),
    ]
    libraries = [str(packages / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
    return [Command(argv, {"LD_LIBRARY_PATH": os.pathsep.join(libraries)})]


def _write_model(folder: Path, model: Model, paths: Sequence[str]) -> None:
    (folder / "1").mkdir(parents=True)
    imports = "from bench.rivals.inside.triton import TritonPythonModel"
    (folder / "1/model.py").write_text(f"import sys\n\nsys.path += {paths}\n{imports}\n")
    row = "" if model.batched else "1, "
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_WAIT_MS * 1000} }}" if model.batched else ""
    (folder / "config.pbtxt").write_text(
        f'name: "{model.name}"\n'
        'backend: "python"\n'
        f"max_batch_size: {MAX_BATCH if model.batched else 0}\n"
        f'input [{{ name: "x" data_type: TYPE_FP32 dims: [{row}{model.row_in}] }}]\n'
        f'output [{{ name: "y" data_type: TYPE_FP32 dims: [{row}{model.row_out}] }}]\n'
        "instance_group [{ kind: KIND_CPU count: 1 }]\n"
        f"{batching}\n"
    )


def _clean(place: Place) -> None:
    """The backend's own segments, where the server was killed."""
    for file in _SHM.glob(f"{place.folder.name}*"):
        file.unlink(missing_ok=True)


def _connect(place: Place, model: str) -> "_Binary":
    return _Binary(place, model)


def _connect_shared(place: Place, model: str) -> "_Shared":
    return _Shared(place, model)


class _Binary:
    """Sends and gets tensors behind JSON."""

    def __init__(self, place: Place, model: str) -> None:
        self._model = MODELS[model]
        self._connection = Connection(place.ports[0], f"/v2/models/{model}/infer")

    def hold(self, x: Array) -> Array:
        """*x* itself. What is said about it is the same for all inputs of its shape."""
        self._write(x, {"binary_data_size": x.nbytes}, {"binary_data": True})
        return x

    def __call__(self, x: Array) -> Array:
        """Post JSON and tensor; a view of the answer's tensor."""
        answer = self._connection.post(self._json, x.data.cast("B"), headers=self._header)
        return np.frombuffer(answer[len(answer) - self._bytes :], np.float32).reshape(self._shape)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _write(self, x: Array, sent: dict[str, object], wanted: dict[str, object]) -> None:
        self._shape = _find_answer(self._model, x)
        self._bytes = 4 * self._shape[0] * self._shape[1]
        tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": sent}
        self._json = json.dumps({"inputs": [tensor], "outputs": [{"name": "y", "parameters": wanted}]}).encode()
        self._header = f"Inference-Header-Content-Length: {len(self._json)}\r\n"


class _Shared(_Binary):
    """Keeps both tensors in a segment that the server maps; the client reads the answer where the server wrote it."""

    def __init__(self, place: Place, model: str) -> None:
        super().__init__(place, model)
        self._place = place
        self._region = f"{place.folder.name}-{os.getpid()}"

    def hold(self, x: Array) -> Array:
        """A copy of *x* in the segment, which is made as large as *x* and its answer."""
        rows, columns = _find_answer(self._model, x)
        total = x.nbytes + 4 * rows * columns
        file = _SHM / self._region
        with file.open("x+b") as segment:
            segment.truncate(total)
            memory = mmap.mmap(segment.fileno(), total)
        self._ask("register", {"key": f"/{self._region}", "offset": 0, "byte_size": total})
        file.unlink()
        self._y = np.frombuffer(memory, np.float32, rows * columns, x.nbytes).reshape(rows, columns)
        region = {"shared_memory_region": self._region}
        answer = {"shared_memory_byte_size": self._y.nbytes, "shared_memory_offset": x.nbytes}
        self._write(x, {**region, "shared_memory_byte_size": x.nbytes}, {**region, **answer})
        held = np.frombuffer(memory, np.float32, x.size).reshape(x.shape)
        held[:] = x
        return held

    def __call__(self, x: Array) -> Array:
        """Post JSON alone; the answer in the segment. *x* is what was held last."""
        del x
        self._connection.post(self._json)
        return self._y

    def close(self) -> None:
        """Let the server unmap the segment, and close the connection."""
        self._ask("unregister", {})
        super().close()

    def _ask(self, what: str, order: dict[str, object]) -> None:
        connection = Connection(self._place.ports[0], f"/v2/systemsharedmemory/region/{self._region}/{what}")
        connection.post(json.dumps(order).encode())
        connection.close()


def _find_answer(model: Model, x: Array) -> tuple[int, int]:
    """The shape of the answer to *x*."""
    return x.shape[0], x.shape[1] if model.row_out < 0 else model.row_out


RIVAL: Final = Rival(
    "triton", _REQUIREMENTS, _make_commands, _connect, without_dependencies=True, release="2.51.0", clean=_clean
)
SHARED: Final = replace(RIVAL, name="triton-shm", connect=_connect_shared)
