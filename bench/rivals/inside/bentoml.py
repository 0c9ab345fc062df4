"""The models behind BentoML: ``BENCH_MODEL`` names the one that a service serves."""

import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Annotated, Any, Final

import bentoml  # type: ignore[import-not-found]
import numpy as np
from bentoml.validators import ContentType  # type: ignore[import-not-found]

from bench.rivals.http import TIMEOUT_S
from bench.rivals.models import MAX_BATCH, load, run_batch

_SERVICE: Final[dict[str, Any]] = {
    "workers": 1,
    "traffic": {"timeout": TIMEOUT_S, "max_concurrency": 64},
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
}


@bentoml.service(**_SERVICE)
class One:
    """A model that answers one request at a time. A request's body comes as a file, which the server writes."""

    def __init__(self) -> None:
        self.call = load(os.environ["BENCH_MODEL"])

    @bentoml.api  # type: ignore[untyped-decorator]
    def infer(self, x: Path, /) -> Annotated[bytes, ContentType("application/octet-stream")]:
        """One answer."""
        return self.call(np.fromfile(x, np.float32)).tobytes()


@bentoml.service(**_SERVICE)
class Many:
    """A model that answers a batch at a time.

    How long a request waits for others the server works out by itself; what can be said is when a request is too old.
    """

    def __init__(self) -> None:
        self.call = load(os.environ["BENCH_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=TIMEOUT_S * 1000)  # type: ignore[untyped-decorator]
    def infer(self, inputs: list[str]) -> list[str]:
        """Answers to a batch."""
        answers = run_batch(self.call, [np.frombuffer(b64decode(text), np.float32) for text in inputs])
        return [b64encode(y.tobytes()).decode() for y in answers]
