"""Abuse of a real router and real workers by seeded clients and workers without manners.

A sequence is a fixed number of steps that a seed chooses. After each sequence another tenant's next calls are answered
right, on both lanes, and the router has given back what the sequence made it hold.

``python -m tests.fuzz.live --seconds 60`` runs sequences that nobody has tried; says how many, and the router's memory.
A failure names its seed: ``--seed N`` makes it happen again.
"""

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from bedsit import Client
from tests.fuzz.abuse import clients, workers
from tests.fuzz.abuse.stage import Stage
from tests.supervisor.router.conftest import GATE_TOML, Nursery, Plane

Step = Callable[[Stage], None]

STEPS: Final = 6
#: What malloc may keep of one sequence, and of all of them together.
_GROWTH_BYTES: Final = 96 << 20
_KINDS: Final[dict[str, Sequence[Step]]] = {"clients": clients.STEPS, "workers": workers.STEPS}
#: Under the gate's name, without its tricks: an answer that was written over an input must not be an order to it.
_BUNDLE: Final = {"bedsit.toml": GATE_TOML, "model.py": "def build(bundle):\n    return lambda x: x + 1\n"}


class Abuse:
    """A plane with an innocent tenant and two others: ``acme`` has a worker and bad clients, ``liar`` bad workers."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        limits = {"arena_bytes": 1 << 20, "queue_max": 64, "sessions_max": 64}
        for name in ("acme", "liar"):
            if name not in plane.tenants:
                plane.add_tenant(name)
            plane.change(name, **limits)
        for name in ("acme", "beta"):
            plane.add_slot(name, [_BUNDLE])
        self.key = plane.add_key("acme")
        self._innocent = [Client("beta", run_dir=str(plane.run_dir), lane=lane) for lane in ("fast", "zmq")]
        self._check_innocent(0)
        for kind in _KINDS:  # the first time of everything makes what stays
            self._play(random.Random(0), kind, _KINDS[kind])
        self._descriptors = plane.descriptors()
        self._resident_bytes = plane.resident_bytes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._innocent:
            client.close()

    def play(self, kind: str, seed: int, steps: int = STEPS) -> None:
        """One sequence of a kind. Raises AssertionError where something does not hold."""
        rng = random.Random(f"{kind} {seed}")
        chosen = rng.choices(_KINDS[kind], k=steps)
        try:
            self._play(rng, kind, chosen)
            self._check_innocent(seed)
            self._check_router()
        except BaseException as e:
            e.add_note(f"{kind}, seed {seed}: {', '.join(step.__name__ for step in chosen)}")
            e.add_note(self.plane.router_log.read_text()[-2000:])
            raise

    def _play(self, rng: random.Random, kind: str, steps: Sequence[Step]) -> None:
        with Stage(self.plane, "acme" if kind == "clients" else "liar", self.key, rng) as stage:
            for step in steps:
                step(stage)
                assert self.plane.router is not None
                assert self.plane.router.poll() is None, f"the router died of {step.__name__}"

    def _check_innocent(self, seed: int) -> None:
        for client in self._innocent:
            for size in (3, 5000):  # inline, and in the arena
                x = np.arange(size, dtype=np.float32) + 10 * (seed % 1000 + 1)
                x[0] = 0
                y = client.infer("gate", {"x": x}, timeout_s=20.0)["y"]
                assert np.array_equal(y, x + 1)

    def _check_router(self) -> None:
        plane = self.plane
        for name in ("acme", "liar"):
            plane.wait_until(lambda name=name: _is_idle(plane.counts(name)))  # type: ignore[misc]
        plane.heard.clear()
        plane.wait_until(lambda: plane.descriptors() <= self._descriptors)
        assert plane.resident_bytes() - self._resident_bytes < _GROWTH_BYTES, "the router grows"


def _is_idle(counts: dict[str, int]) -> bool:
    return not (counts["queued"] or counts["in_flight"] or counts["sessions"])


@contextlib.contextmanager
def open_plane() -> Iterator[Plane]:
    """A plane of its own, for use without pytest."""
    nursery = Nursery()
    folder = Path(tempfile.mkdtemp(prefix="bedsit-plane-"))
    plane: Any = Plane(folder, nursery)
    try:
        for name in ("acme", "beta", "liar"):
            plane.add_tenant(name)
        plane.start_router()
        yield plane
    finally:
        plane.close()
        nursery.close()
        shutil.rmtree(folder)


def main() -> int:
    """Sequences of both kinds by turns until the time is up, or the one of a seed."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.live", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kind", choices=list(_KINDS))
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else list(_KINDS)
    seed = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed
    sequences = 0
    with open_plane() as plane, Abuse(plane) as abuse:
        end = time.monotonic() + options.seconds
        while True:
            for kind in kinds:
                abuse.play(kind, seed + sequences, STEPS)
            sequences += 1
            if options.seed is not None or time.monotonic() > end:
                break
        print(sequences * len(kinds), plane.resident_bytes() >> 20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
