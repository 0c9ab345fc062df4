"""The models behind Ray Serve, and its server: the command line is a port, a folder and the models' names."""

import logging
import sys
from typing import Any, Final

import numpy as np
import ray  # type: ignore[import-not-found]
from ray import serve
from starlette.requests import Request  # type: ignore[import-not-found]
from starlette.responses import Response  # type: ignore[import-not-found]

from bench.rivals.http import HOST
from bench.rivals.models import MAX_BATCH, MAX_WAIT_MS, MODELS, Array, load, run_batch

#: Cores are not handed out: one replica each, whatever they need.
_REPLICA: Final[dict[str, Any]] = {
    "num_replicas": 1,
    "max_ongoing_requests": 64,
    "ray_actor_options": {"num_cpus": 0},
}


@serve.deployment(**_REPLICA)
class One:
    """A model that answers one request at a time."""

    def __init__(self, name: str) -> None:
        self._call = load(name)

    async def __call__(self, request: Request) -> Response:
        """Bytes in, bytes out."""
        y = self._call(np.frombuffer(await request.body(), np.float32))
        return Response(y.tobytes(), media_type="application/octet-stream")


@serve.deployment(**_REPLICA)
class Many:
    """A model that answers a batch at a time."""

    def __init__(self, name: str) -> None:
        self._call = load(name)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=MAX_WAIT_MS / 1e3)  # type: ignore[untyped-decorator]
    async def _answer(self, inputs: list[Array]) -> list[Array]:
        return run_batch(self._call, inputs)

    async def __call__(self, request: Request) -> Response:
        """Bytes in, bytes out."""
        y = await self._answer(np.frombuffer(await request.body(), np.float32))
        return Response(y.tobytes(), media_type="application/octet-stream")


def main() -> None:
    """Serve until told otherwise."""
    port, folder, *names = sys.argv[1:]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=1 << 30,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address=HOST,
        _temp_dir=folder,
    )
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(http_options={"host": HOST, "port": int(port)}, proxy_location="HeadOnly", logging_config=quiet)
    for name in names:
        deployment: Any = Many if MODELS[name].batched else One
        serve.run(deployment.bind(name), name=name, route_prefix=f"/{name}", blocking=name == names[-1])


if __name__ == "__main__":
    main()
