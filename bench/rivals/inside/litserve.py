"""The models behind LitServe, and its server: the command line is a port and the models' names."""

import sys
from typing import Annotated, Any

import litserve  # type: ignore[import-not-found]
import numpy as np
from fastapi import Depends, Request, Response  # type: ignore[import-not-found]

from bench.rivals.http import HOST, TIMEOUT_S
from bench.rivals.models import MAX_BATCH, MAX_BYTES, MAX_WAIT_MS, MODELS, Array, load, run_batch


async def _read_body(request: Request) -> bytes:
    body: bytes = await request.body()
    return body


class Api(litserve.LitAPI):  # type: ignore[misc]
    """A model whose requests and answers are bytes. A batch is a list: nothing is stacked before the model does it."""

    def setup(self, _device: str) -> None:
        """Load the model."""
        self.call = load(self.api_path.removeprefix("/"))

    def decode_request(self, request: Annotated[bytes, Depends(_read_body)]) -> Array:
        """Bytes to a flat array, without a copy."""
        return np.frombuffer(request, np.float32)

    def batch(self, inputs: list[Array]) -> list[Array]:
        """As they are."""
        return inputs

    def predict(self, x: Any) -> Any:
        """One answer, or those of a batch."""
        return run_batch(self.call, x) if isinstance(x, list) else self.call(x)

    def unbatch(self, output: list[Array]) -> list[Array]:
        """As they are."""
        return output

    def encode_response(self, output: Array) -> Response:
        """An answer to bytes."""
        return Response(output.tobytes(), media_type="application/octet-stream")


def main() -> None:
    """Serve until told otherwise."""
    port, *names = sys.argv[1:]
    batches = {"max_batch_size": MAX_BATCH, "batch_timeout": MAX_WAIT_MS / 1e3}
    apis = [Api(api_path=f"/{name}", **(batches if MODELS[name].batched else {})) for name in names]
    server = litserve.LitServer(
        apis,
        accelerator="cpu",
        devices=1,
        workers_per_device=1,
        fast_queue=True,
        max_payload_size=MAX_BYTES,
        timeout=TIMEOUT_S,
    )
    server.run(
        host=HOST, port=int(port), num_api_servers=1, generate_client_file=False, log_level="warning", access_log=False
    )


if __name__ == "__main__":
    main()
