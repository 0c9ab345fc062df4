"""The workers behind mosec, and its server: ``BENCH_MODELS`` names the models, mosec reads the command line."""

import os

import numpy as np
from mosec import Runtime, Server, Worker  # type: ignore[import-not-found]

from bench.rivals.models import MAX_BATCH, MAX_WAIT_MS, MODELS, Array, load, run_batch


class One(Worker):  # type: ignore[misc]
    """A model that answers one request at a time."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        self.call = load(os.environ["BENCH_MODEL"])

    def deserialize(self, data: bytes) -> Array:
        """Bytes to a flat array, without a copy."""
        return np.frombuffer(data, np.float32)

    def forward(self, data: Array) -> Array:
        """One answer."""
        return self.call(data)

    def serialize(self, data: Array) -> bytes:
        """An answer to bytes."""
        return data.tobytes()


class Many(One):
    """A model that answers a batch at a time."""

    def forward(self, data: list[Array]) -> list[Array]:  # type: ignore[override]
        """Answers to a batch."""
        return run_batch(self.call, data)


def main() -> None:
    """Serve until told otherwise."""
    runtimes = {}
    for name in os.environ["BENCH_MODELS"].split():
        env = [{"BENCH_MODEL": name}]
        runtimes[f"/{name}"] = [
            Runtime(Many, max_batch_size=MAX_BATCH, max_wait_time=MAX_WAIT_MS, env=env)
            if MODELS[name].batched
            else Runtime(One, env=env)
        ]
    server = Server()
    server.register_runtime(runtimes)
    server.run()


if __name__ == "__main__":
    main()
