"""MLServer: uvicorn in front, a Python process per model (a pool of one each), the V2 protocol's JSON.

Texts in JSON are its quick way for large tensors: it turns numbers, also those that come as bytes over gRPC, into
Python's.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.rivals.http import HOST
from bench.rivals.models import MAX_BATCH, MAX_BYTES, MAX_WAIT_MS, MODELS
from bench.rivals.rival import Command, Place, Rival
from bench.rivals.text import TextCaller

_BEFORE: Final = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","data":["'
_AFTER: Final = b'"]}]}'
_MARK: Final = b'"data":["'


def _make_commands(place: Place, models: Sequence[str]) -> Sequence[Command]:
    http, grpc, metrics = place.ports[:3]
    settings = {"host": HOST, "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "debug": False}
    limits = {"parallel_workers": 1, "grpc_max_message_length": MAX_BYTES}
    _write(place.folder / "settings.json", {**settings, **limits})
    for name in models:
        batching = {"max_batch_size": MAX_BATCH, "max_batch_time": MAX_WAIT_MS / 1e3} if MODELS[name].batched else {}
        model = {"name": name, "implementation": "bench.rivals.inside.mlserver.Runtime", **batching}
        _write(
            place.folder / name / "model-settings.json",
            {**model, "parameters": {"autogenerate_inference_pool_gid": True}},
        )
    return [Command([place.python, place.find_program("mlserver"), "start", place.folder])]


def _write(file: Path, settings: dict[str, object]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(settings))


def _connect(place: Place, model: str) -> TextCaller:
    path = f"/v2/models/{model}/infer"
    return TextCaller(place.ports[0], path, MODELS[model].row_out, before=_BEFORE, after=_AFTER, mark=_MARK)


# With a later uvloop its workers find no event loop, and end.
RIVAL: Final = Rival("mlserver", ("mlserver==1.7.1", "uvloop<0.22"), _make_commands, _connect)
