"""TorchServe: a Java server, one Python process per model. Its upstream is archived; this is its last release."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.rivals.http import HOST, TIMEOUT_S, RawCaller
from bench.rivals.models import MAX_BATCH, MAX_BYTES, MAX_WAIT_MS, MODELS
from bench.rivals.rival import Command, Place, Rival

_HANDLER: Final = Path(__file__).parent / "inside/torchserve.py"


def _make_commands(place: Place, models: Sequence[str]) -> Sequence[Command]:
    store = place.folder / "store"
    store.mkdir()
    for name in models:
        _write_archive(store / f"{name}.mar", name)
    config = place.folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in _configure(place, store, models).items()))
    options = ("--foreground", "--disable-token-auth", "--no-config-snapshots", "--models", "all")
    argv = [place.find_program("torchserve"), "--start", *options, "--ts-config", config, "--model-store", store]
    folder = str(place.folder)
    return [Command([place.python, *argv], {"LOG_LOCATION": folder, "METRICS_LOCATION": folder})]


def _write_archive(file: Path, name: str) -> None:
    """A ``.mar`` is a zip of a handler and a manifest."""
    manifest = {
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {"modelName": name, "handler": "handler.py:handle", "modelVersion": "1.0"},
    }
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(_HANDLER, "handler.py")
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))


def _configure(place: Place, store: Path, models: Sequence[str]) -> dict[str, object]:
    workers = {
        name: {
            "1.0": {
                "defaultVersion": True,
                "marName": f"{name}.mar",
                "minWorkers": 1,
                "maxWorkers": 1,
                "batchSize": MAX_BATCH if MODELS[name].batched else 1,
                "maxBatchDelay": MAX_WAIT_MS,
                "responseTimeout": TIMEOUT_S,
            }
        }
        for name in models
    }
    addresses = ("inference_address", "management_address", "metrics_address")
    return {
        **{key: f"http://{HOST}:{port}" for key, port in zip(addresses, place.ports, strict=False)},
        "grpc_inference_port": place.ports[3],
        "grpc_management_port": place.ports[4],
        "model_store": store,
        "load_models": "all",
        "models": json.dumps(workers),
        "max_request_size": MAX_BYTES,
        "max_response_size": MAX_BYTES,
        "disable_token_authorization": "true",
        "disable_system_metrics": "true",
        "install_py_dep_per_model": "false",
        "job_queue_size": 1000,
    }


def _connect(place: Place, model: str) -> RawCaller:
    return RawCaller(place.ports[0], f"/predictions/{model}", MODELS[model].row_out)


RIVAL: Final = Rival(
    "torchserve",
    ("torchserve==0.12.0", "torch-model-archiver==0.12.0", "pyyaml"),
    _make_commands,
    _connect,
    needs=("java",),
)
