"""BentoML: a service of its own per model, each uvicorn in one worker process.

From outside it takes tensors as files or in JSON. The quicker way for one request is a file; batches need JSON.
"""

from collections.abc import Sequence
from typing import Final

from bench.rivals.http import HOST, RawCaller
from bench.rivals.models import MODELS
from bench.rivals.rival import ROOT, Caller, Command, Place, Rival
from bench.rivals.text import TextCaller

_BEFORE: Final = b'{"inputs":["'
_AFTER: Final = b'"]}'
_MARK: Final = b'["'


def _make_commands(place: Place, models: Sequence[str]) -> Sequence[Command]:
    quiet = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.folder / "home"), "NO_COLOR": "1"}
    return [
        Command(
            [
                *(place.python, place.find_program("bentoml"), "serve"),
                f"bench.rivals.inside.bentoml:{'Many' if MODELS[name].batched else 'One'}",
                *("--host", HOST, "--port", _find_port(place, name), "--working-dir", ROOT),
            ],
            {**quiet, "BENCH_MODEL": name},
        )
        for name in models
    ]


def _find_port(place: Place, model: str) -> int:
    return place.ports[list(MODELS).index(model)]


def _connect(place: Place, model: str) -> Caller:
    port, columns = _find_port(place, model), MODELS[model].row_out
    if not MODELS[model].batched:
        return RawCaller(port, "/infer", columns)
    return TextCaller(port, "/infer", columns, before=_BEFORE, after=_AFTER, mark=_MARK)


RIVAL: Final = Rival("bentoml", ("bentoml==1.4.39",), _make_commands, _connect)
