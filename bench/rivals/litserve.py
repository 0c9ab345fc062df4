"""LitServe: uvicorn in front, one Python process per model, ZeroMQ between them (``fast_queue``)."""

from collections.abc import Sequence
from typing import Final

from bench.rivals.http import RawCaller
from bench.rivals.models import MODELS
from bench.rivals.rival import Command, Place, Rival


def _make_commands(place: Place, models: Sequence[str]) -> Sequence[Command]:
    return [Command([place.python, "-m", "bench.rivals.inside.litserve", place.ports[0], *models])]


def _connect(place: Place, model: str) -> RawCaller:
    return RawCaller(place.ports[0], f"/{model}", MODELS[model].row_out)


RIVAL: Final = Rival("litserve", ("litserve==0.2.19",), _make_commands, _connect)
