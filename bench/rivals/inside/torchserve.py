"""A model's handler behind TorchServe: a module with ``handle``, which gets a batch of requests."""

from functools import cache
from typing import Any

import numpy as np

from bench.rivals.models import Call, load, run_batch


@cache
def _load_once(name: str) -> Call:
    return load(name)


def handle(data: list[dict[str, Any]], context: Any) -> list[bytes] | None:
    """Bytes in, bytes out; without data it is only to load the model."""
    call = _load_once(context.manifest["model"]["modelName"])
    if not data:
        return None
    inputs = [np.frombuffer(request.get("body") or request["data"], np.float32) for request in data]
    return [y.tobytes() for y in (run_batch(call, inputs) if len(inputs) > 1 else [call(inputs[0])])]
