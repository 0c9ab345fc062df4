"""Ray Serve: its HTTP proxy, an application with one replica, which is a process, per model."""

from collections.abc import Sequence
from typing import Final

from bench.rivals.http import RawCaller
from bench.rivals.models import MODELS
from bench.rivals.rival import Command, Place, Rival


def _make_commands(place: Place, models: Sequence[str]) -> Sequence[Command]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    argv = [place.python, "-m", "bench.rivals.inside.ray", place.ports[0], place.folder, *models]
    return [Command(argv, quiet)]


def _connect(place: Place, model: str) -> RawCaller:
    return RawCaller(place.ports[0], f"/{model}", MODELS[model].row_out)


RIVAL: Final = Rival("ray", ("ray[serve]==2.60.0",), _make_commands, _connect)
