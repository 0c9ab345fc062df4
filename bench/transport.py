"""What bytes cost on their way through bedsit: ``python -m bench.transport --json F [--quick]``.

echo      the model returns its input, which the client holds in shared memory: by reference, both ways
negate    the model writes minus its input straight into the caller's memory; beside it torch.neg(x, out=y) in process
memcpy    one copy of as many bytes, in process

Each size is one float32 array. All take their turns in every round, every second one backwards. That answers are right,
that they are views, and that an echo lies where its input does, is looked at outside of the timed part.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from bedsit.ipc.client import Client
from bench import report
from bench.rivals.load import Case, Load, Seen, drive
from bench.rivals.models import Array, make_input
from bench.rivals.rival import Caller
from examples.box import Box

SIZES: Final = (1 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20)
ROUNDS: Final = 3
_TENANT: Final = "transport"
_MODELS: Final = Path(__file__).parent / "models"
#: From here on an array is passed by its place at the latest; small ones travel inside of messages.
_BY_REFERENCE_BYTES: Final = 64 << 10
# One torch thread, as in process, and a limit that one thread does not reach.
_CPUS: Final = 1.5


class Way(NamedTuple):
    """One way of the bytes. *answer* gives what must come back."""

    name: str
    connect: Callable[[str], Caller]
    answer: Callable[[Array], Array]


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """Start everything, let all take their turns, stop everything."""
    import torch

    torch.set_num_threads(1)
    with Box({"pool_size": 1}) as box:
        box.read("tenant", "create", _TENANT, "--cpus", _CPUS)
        for model in ("echo", "negate"):
            box.read("model", "deploy", _TENANT, _MODELS / model / "bundle")
        run_dir = str(box.run_dir)
        ways = [
            Way("echo", lambda model: _Ours(run_dir, model, by_reference=True), np.positive),
            Way("negate", lambda model: _Ours(run_dir, model), np.negative),
            Way("inprocess", lambda _: _Negate(), np.negative),
            Way("memcpy", lambda _: _Copy(), np.positive),
        ]
        return {**_summarise(_interleave(ways, 0.1 if quick else 1.0)), "walls": box.status()["walls"]}


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    head = ["bytes", "echo p50_us", "p99_us", "negate p50_us", "in process", "memcpy"]
    rows = [
        [size, *result["echo"][size].values(), *result["negate"][size].values(), result["memcpy"][size]]
        for size in result["echo"]
    ]
    report.print_table(head, rows)
    print(f"echo of 64 MiB / echo of 1 KiB: x{result['ratio_64m_to_1k']:.2f}")
    print(f"negate of 64 MiB / (in process + negate of 1 KiB): x{result['negate_64m_to_floor']:.3f}")


class _Ours:
    """A session whose arrays lie in shared memory, whatever their size."""

    def __init__(self, run_dir: str, model: str, *, by_reference: bool = False) -> None:
        self._client = Client(_TENANT, run_dir=run_dir)
        self._infer = self._client.infer
        self._model = model
        self._by_reference = by_reference

    def hold(self, x: Array) -> Array:
        """A copy of *x* in shared memory. Raises RuntimeError when what comes back for it was copied."""
        held: Array = self._client.empty(x.shape, x.dtype)
        held[:] = x
        y = self(held)
        if y.flags.owndata:
            raise RuntimeError(f"{self._model}: the answer is no view")
        if self._by_reference and x.nbytes >= _BY_REFERENCE_BYTES and y.ctypes.data != held.ctypes.data:
            raise RuntimeError(f"{self._model}: the answer does not lie where its input does")
        return held

    def __call__(self, x: Array) -> Array:
        """Infer."""
        y: Array = self._infer(self._model, {"x": x})["y"]
        return y

    def close(self) -> None:
        """End the session."""
        self._client.close()


class _InProcess:
    """Work in the client itself, from one array to another."""

    def hold(self, x: Array) -> Array:
        """*x*, with room for the answer beside it, whose pages are there."""
        self._y = np.zeros_like(x)
        return x

    def close(self) -> None:
        """Nothing to end."""


class _Negate(_InProcess):
    def hold(self, x: Array) -> Array:
        """*x*, seen by torch too."""
        import torch

        super().hold(x)
        self._negate, self._from, self._to = torch.neg, torch.from_numpy(x), torch.from_numpy(self._y)
        return x

    def __call__(self, x: Array) -> Array:
        """One torch call. *x* is what was held."""
        del x
        self._negate(self._from, out=self._to)
        return self._y


class _Copy(_InProcess):
    def __call__(self, x: Array) -> Array:
        """One copy."""
        np.copyto(self._y, x)
        return self._y


def _interleave(ways: list[Way], seconds: float) -> dict[tuple[str, int], list[Seen]]:
    """What each way showed for each size, round by round."""
    seen: dict[tuple[str, int], list[Seen]] = defaultdict(list)
    for number in range(ROUNDS):
        for size in SIZES:
            x = make_input("echo", size // 4)
            for way in ways if number % 2 == 0 else reversed(ways):
                case = Case(way.name, x, way.answer(x))
                seen[way.name, size].append(drive(way.connect, case, Load(1, seconds)))
    return seen


def _summarise(seen: Mapping[tuple[str, int], list[Seen]]) -> dict[str, Any]:
    """The report's own keys. Sizes are texts, as in JSON."""

    def median_us(way: str, size: int, percent: float = 50) -> float:
        return round(statistics.median(one.percentile_us(percent) for one in seen[way, size]), 2)

    small, large = SIZES[0], SIZES[-1]
    floor_us = median_us("inprocess", large) + median_us("negate", small)
    return {
        "echo": {str(size): {f"p{p}_us": median_us("echo", size, p) for p in (50, 99)} for size in SIZES},
        "negate": {
            str(size): {"p50_us": median_us("negate", size), "inprocess_p50_us": median_us("inprocess", size)}
            for size in SIZES
        },
        "memcpy": {str(size): median_us("memcpy", size) for size in SIZES},
        "ratio_64m_to_1k": round(median_us("echo", large) / median_us("echo", small), 3),
        "negate_64m_to_floor": round(median_us("negate", large) / floor_us, 3),
    }


if __name__ == "__main__":
    report.run("transport", measure, show)
