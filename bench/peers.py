"""bedsit beside other model servers: ``python -m bench.peers --json F [--quick] [--targets A,B] [--work FOLDER]``.

The same torch models behind every server, one worker process per model, one torch thread; the same clients, which ask
over HTTP from bare sockets where the server speaks it; the same inputs, and answers that are checked. Servers are
configured as their documents advise and not tuned further. Rounds go through all of them, every second one backwards.
All are up the whole time; those whose turn it is not are stopped by a signal, because some never sleep.

``first_answer_s`` is from nothing to the first answer of the tiny model alone: for bedsit `up`, a tenant and a deploy.
What cannot be installed, started or asked is in the report with its reason. Installing needs pip's index, and happens
once below ``--work``; a quick run installs nothing, and asks bedsit and mosec only, unless told which.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench import report
from bench.rivals import bentoml, litserve, mlserver, mosec, ray, torchserve, triton
from bench.rivals.contender import Contender
from bench.rivals.environment import find_missing, find_python, make_environment
from bench.rivals.figures import Cases, Lengths, make_cases
from bench.rivals.ours import OurServer
from bench.rivals.rival import Rival
from bench.rivals.server import RivalServer

ROUNDS: Final = 3
RIVALS: Final[Mapping[str, Rival]] = {
    rival.name: rival
    for rival in (
        mosec.RIVAL,
        litserve.RIVAL,
        triton.RIVAL,
        triton.SHARED,
        torchserve.RIVAL,
        mlserver.RIVAL,
        bentoml.RIVAL,
        ray.RIVAL,
    )
}
NAMES: Final = (OurServer.name, *RIVALS)
QUICK_NAMES: Final = (OurServer.name, mosec.RIVAL.name)
WORK: Final = Path.home() / ".cache/bedsit/peers"
_FULL: Final = Lengths(tiny=1.0, echo=1.5, batched=1.0, victim=2.0)
_QUICK: Final = Lengths(tiny=0.15, echo=0.15, batched=0.15, victim=0.3)


def find(contender: Contender, work: Path, *, install: bool) -> None:
    """See how it can be started. Raises RuntimeError."""
    if contender.name == OurServer.name:
        contender.version, contender.make = OurServer.version, lambda _: OurServer()
        return
    rival = RIVALS[contender.name]
    contender.version = rival.version
    missing = find_missing(rival)
    if missing:
        raise RuntimeError(missing)
    python = find_python(work, rival)
    if python is None:
        if not install:
            raise RuntimeError("not installed, and a quick run installs nothing")
        print(f"installing {rival.name} {rival.version}", file=sys.stderr)
        python = make_environment(work, rival)
    contender.make = lambda purpose: RivalServer(rival, python, work / f"{rival.name}-{purpose}.log")


def compare(contenders: Sequence[Contender], cases: Cases, lengths: Lengths, *, quick: bool) -> None:
    """Start all, let them take their turns, stop all. A quick comparison sees the first answer once."""
    with ExitStack() as stack:
        for contender in contenders:
            stack.callback(contender.stop)
            contender.attempt(partial(contender.start, cases))
        for number in range(ROUNDS):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                if number == 0 or not quick:
                    contender.attempt(partial(contender.measure_first_answer, cases.tiny))
                contender.attempt(partial(contender.take_turn, cases, lengths))
            print(f"round {number + 1} of {ROUNDS} is done", file=sys.stderr)


def measure(quick: bool, targets: Sequence[str] | None, work: Path) -> dict[str, Any]:  # noqa: FBT001 - as everywhere
    """Compare *targets*, installed below *work*; the others are in the report too, as left out."""
    names = targets or (QUICK_NAMES if quick else NAMES)
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    contenders = [Contender(name) for name in NAMES if name in names]
    for contender in contenders:
        contender.attempt(partial(find, contender, work, install=not quick))
    compare(contenders, make_cases(), _QUICK if quick else _FULL, quick=quick)
    found = {contender.name: contender.summarise() for contender in contenders}
    if all("error" in target for target in found.values()):
        raise RuntimeError("; ".join(f"{name}: {target['error']}" for name, target in found.items()))
    left_out = {
        name: {"error": "left out of this run, for --targets did not name it"} for name in NAMES if name not in names
    }
    walls = [contender.active.walls for contender in contenders if isinstance(contender.active, OurServer)]
    return {"targets": found | left_out, "walls": walls[0] if walls else {}}


def show(result: Mapping[str, Any]) -> None:
    """Print the tables, and what is not in them."""
    targets = {name: target for name, target in result["targets"].items() if "error" not in target}
    for outer in ("tiny", "victim_p99_us"):
        keys = next(iter(targets.values()))[outer]
        report.print_table(
            [outer, *keys], [[name, *(target[outer][key] for key in keys)] for name, target in targets.items()]
        )
        print()
    sizes = [key for key in next(iter(targets.values())) if key.startswith("echo")]
    head = ["others", *(f"{size} p50_us" for size in sizes), "batched p50_us", "rps_16", "first_answer_s"]
    rows = [
        [
            name,
            *(target[size]["p50_us"] for size in sizes),
            *target["batched"].values(),
            target["first_answer_s"],
        ]
        for name, target in targets.items()
    ]
    report.print_table(head, rows)
    for name, target in result["targets"].items():
        if "error" in target:
            print(f"{name}: not measured: {target['error']}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which servers, and where they are installed."""
    parser.add_argument("--targets", type=_read_names, metavar="A,B", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--work", type=Path, default=WORK, help="where servers are installed (%(default)s)")


def _read_names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(NAMES)}")
    return names


if __name__ == "__main__":
    report.run("peers", measure, show, add_options)
