"""bedsit itself, as its rivals are measured: a tenant per model, with every wall that the machine has."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import bedsit
from bedsit.ipc.client import Client
from bench.models.mlp.make import make as make_mlp
from bench.rivals.models import Array
from bench.rivals.rival import Caller
from examples.box import Box
from examples.tiny.make import make as make_tiny

_ECHO: Final = Path(__file__).parents[1] / "models/echo/bundle"
#: How each model's bundle is made in a folder, or where it is.
_BUNDLES: Final[Mapping[str, Callable[[Path], Path]]] = {
    "tiny": make_tiny,
    "echo": lambda _: _ECHO,
    "mlp": make_mlp,
}
_UID_BASE: Final = 1_950_000_000
_UIDS: Final = 4096
_numbers: Final = itertools.count()
#: Makes one torch thread, as in every rival, and is a limit that one thread does not reach.
_CPUS: Final = 1.5
#: What is smaller travels inside of a message anyway.
_SMALL_BYTES: Final = 64 << 10


class OurServer:
    """A bedsit of its own."""

    name = "bedsit"
    version = bedsit.__version__

    def __init__(self) -> None:
        self.walls: dict[str, str] = {}
        self._box: Box | None = None
        self._pids: list[int] = []

    def start(self, models: Sequence[str]) -> None:
        """Start it, make a tenant for each model, deploy; returns when all of them can be asked."""
        # One is up all the while and another for a moment in each round, and a bedsit has its uids for itself.
        uid_base = _UID_BASE + (8 * os.getpid() + next(_numbers) % 8) % 4096 * _UIDS
        box = Box({"pool_size": 1, "uid_base": uid_base, "uid_count": _UIDS})
        try:
            box.up()
        except BaseException:
            box.remove()
            raise
        self._box = box
        self._run_dir = str(box.run_dir)
        for name in models:
            box.read("tenant", "create", name, "--cpus", _CPUS)
            box.read("model", "deploy", name, _BUNDLES[name](box.folder / "bundles" / name))
        status = box.status()
        self.walls = status["walls"]
        self._pids = [status["router"]["pid"], *(int(box.tenant(name)["worker_pid"]) for name in models)]

    def connect(self, model: str) -> Caller:
        """A session with the tenant of the model."""
        return _Caller(Client(model, run_dir=self._run_dir), model)

    def find_pids(self) -> list[int]:
        """Router and workers: those that a request meets."""
        return self._pids

    def rest(self) -> None:
        """Nothing: without requests it sleeps."""

    def wake(self) -> None:
        """Nothing."""

    def is_there(self) -> bool:
        """Whether it was started. It tells by itself when it could not be."""
        return self._box is not None

    def explain(self) -> str:
        """Nothing more: what it raises says why."""
        return ""

    def stop(self) -> None:
        """End it, and look that nothing of it is left."""
        box, self._box = self._box, None
        if box is not None:
            box.down()


class _Caller:
    """A session. Large inputs lie in the memory that it shares with the model's worker, as large answers do."""

    def __init__(self, client: Client, model: str) -> None:
        self._client = client
        self._model = model
        self._infer = client.infer

    def hold(self, x: Array) -> Array:
        """A copy of *x* in shared memory, or *x* itself when it is small."""
        if x.nbytes <= _SMALL_BYTES:
            return x
        held: Array = self._client.empty(x.shape, x.dtype)
        held[:] = x
        return held

    def __call__(self, x: Array) -> Array:
        """Infer."""
        y: Any = self._infer(self._model, {"x": x})["y"]
        return y  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the session."""
        self._client.close()
