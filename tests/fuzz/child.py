"""One fuzzer: ``python -m tests.fuzz.child TARGET [options of libFuzzer] [folders]``; with files, runs those once.

The target's own seeds are written into the folder that ``FUZZ_SEEDS`` names, where it names one.
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import atheris
import structlog

#: Of this process, after it has seen enough to be warm. What libFuzzer itself keeps is small: inputs are.
GROWTH_BYTES: Final = 128 << 20
_WARM_RUNS: Final = 3000
_LOOK_EVERY: Final = 1000
#: What is watched for coverage: ours, and what of the standard library reads hostile bytes for us in Python.
_WATCHED: Final = ["bedsit", "tarfile", "tomllib", "json"]


class Growth:
    """Runs inputs, and fails when this process keeps growing."""

    def __init__(self, run: Callable[[bytes], None]) -> None:
        self._run = run
        self._runs = 0
        self._warm_bytes = 0

    def __call__(self, data: bytes) -> None:
        self._run(data)
        self._runs += 1
        if self._runs == _WARM_RUNS:
            self._warm_bytes = _resident_bytes()
        elif self._warm_bytes and self._runs % _LOOK_EVERY == 0:
            grown = _resident_bytes() - self._warm_bytes
            assert grown < GROWTH_BYTES, f"grew by {grown >> 20} MiB in {self._runs - _WARM_RUNS} runs"


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with atheris.instrument_imports(include=_WATCHED):
        target = importlib.import_module(f"tests.fuzz.targets.{sys.argv[1]}")
    if seeds := os.environ.get("FUZZ_SEEDS"):
        for number, data in enumerate(target.seeds()):
            (Path(seeds) / str(number)).write_bytes(data)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], Growth(target.TestOneInput))
    atheris.Fuzz()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
