"""mosec: HTTP and batching in Rust, one Python process per model behind a Unix socket, a route per model."""

from collections.abc import Sequence
from typing import Final

from bench.rivals.http import HOST, TIMEOUT_S, RawCaller
from bench.rivals.models import MAX_BYTES, MODELS
from bench.rivals.rival import Command, Place, Rival


def _make_commands(place: Place, models: Sequence[str]) -> Sequence[Command]:
    options = ("--address", HOST, "--port", place.ports[0], "--path", place.folder / "ipc", "--log-level", "warning")
    limits = ("--timeout", TIMEOUT_S * 1000, "--max-request-size", MAX_BYTES)
    argv = [place.python, "-m", "bench.rivals.inside.mosec", *options, *limits]
    return [Command(argv, {"BENCH_MODELS": " ".join(models)})]


def _connect(place: Place, model: str) -> RawCaller:
    return RawCaller(place.ports[0], f"/{model}", MODELS[model].row_out)


RIVAL: Final = Rival("mosec", ("mosec==0.9.8",), _make_commands, _connect)
