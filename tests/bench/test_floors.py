"""The floors answer what the model answers, and owe nothing to bedsit."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_PROGRAM = """
import json, sys
from contextlib import ExitStack
from bench import tiny
from bench.floors import make_floors
from bench.interleave import interleave

model, example = tiny.load(), tiny.make_example()
checked = []

class Checked:
    def __init__(self, floor):
        self.floor, self.name, self.pids, self.router = floor, floor.name, floor.pids, floor.router
    def connect(self, number):
        call = self.floor.connect(number)
        assert (call(example) == model(example)).all()
        return call

with ExitStack() as stack:
    floors = make_floors(model)
    for floor in floors:
        stack.callback(floor.stop)
        floor.start()
    figures = interleave([Checked(floor) for floor in floors], example, 0.02)
print(json.dumps({"figures": figures, "bedsit": [m for m in sys.modules if m.startswith("bedsit")]}))
"""


def test_floors_answer_and_are_measured() -> None:
    """Every floor's clients get the model's answer; each figure is there; nothing of bedsit was imported."""
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], cwd=ROOT, env=one, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)

    assert seen["bedsit"] == []
    assert list(seen["figures"]) == ["inprocess", "zmq_one_hop", "zmq_two_hop", "packet_two_hop"]
    for times, _ in seen["figures"].values():
        assert set(times) == {"p50_us", "p99_us", "rps_1", "rps_16", "one_core_p50_us"}
        assert min(times.values()) > 0
    assert [router is not None for _, router in seen["figures"].values()] == [False, False, True, True]
