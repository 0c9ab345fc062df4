"""The benchmark of placement: its traces are the drawn ones, and every way plays by the rules."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.packing import Ours, take_best, take_first, take_vendors
from bench.traces.asks import _CUSTOMERS as CUSTOMERS
from bench.traces.asks import _SEED as SEED
from bench.traces.asks import MIXES, draw_asks, measure_ask, parse_asks, read_asks

ROOT = Path(__file__).parent.parent.parent
WAYS = {"ours": Ours(), "first": take_first, "best": take_best, "vendor": take_vendors}


@pytest.mark.parametrize("name", MIXES)
def test_a_trace_on_record_is_the_one_that_its_mix_draws(name: str) -> None:
    """Nobody has chosen among several."""
    assert read_asks(name) == parse_asks(list(draw_asks(MIXES[name], SEED, CUSTOMERS)))


def test_a_box_is_asked_for_as_much_as_its_mix_says() -> None:
    """In GPU seconds, to a tenth."""
    for name, mix in MIXES.items():
        box, comings = read_asks(name)
        asked = sum(measure_ask(box, request) * coming.stay_s for coming in comings for request in coming.asks)
        assert asked / (comings[-1].at_s * len(box.cards)) == pytest.approx(mix.load, rel=0.15)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_seats_within_the_rules(way: str) -> None:
    """What one seats could be seated by any other, too: nobody wins by overlapping."""
    box, comings = read_asks("mixed")
    for index, coming in enumerate(comings[:60]):
        asks = {f"t{index}-{number}": request for number, request in enumerate(coming.asks)}
        for tenant, seat in WAYS[way](box, asks).items():  # type: ignore[operator]
            box = box.seat(tenant, asks[tenant], seat)
        for use in box.uses:
            assert use.mask.bit_count() == sum(place.size for place in use.taken)
            assert use.promised_bytes <= use.card.memory_bytes
            assert use.holder is None or len(use.residents) == 1


@pytest.mark.slow
def test_the_report_has_its_keys(tmp_path: Path) -> None:
    """A quick run exits 0, as anybody, and prints a table."""
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "bench.packing", "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())

    assert set(report) == {"name", "version", "commit", "machine", "when", "quick"} | {"traces", "behind"} | {
        "drawn",
        "drawn_totals",
    }
    assert set(report["traces"]) == set(MIXES)
    for ways in report["traces"].values():
        assert set(ways) == set(WAYS)
        for each in ways.values():
            assert set(each) == {"accepted", "refused", "granted", "p50_us", "p99_us"}
            assert 0 < each["granted"] <= 1
    assert "behind another on:" in done.stdout
