"""``make fuzz``: every target for its part of the time, two at once; then the live abuse. Exits with 1 on any finding.

    target, runs, new corpus files, crashes, hangs, peak RSS

A crash or a hang leaves its input in ``build/fuzz``; ``python -m tests.fuzz.child TARGET FILE`` makes it happen again.
What was found belongs into the corpus once it is mended: ``cp FILE tests/fuzz/corpus/TARGET/``. The corpus is made anew
of itself and of what is new at the end of each target's run.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from tests.fuzz.corpus import folder_of, list_targets

_BUILD: Final = Path("build/fuzz")
_AT_ONCE: Final = 2
_MAX_BYTES: Final = 4 << 10  # of an input: what the corpus keeps
_HANG_S: Final = 25  # of wall time, on a machine that may be busy with something else
_RSS_MIB: Final = 2048
_LIVE: Final = "live"
_GREW: Final = re.compile(r"grew by \d+ MiB|out-of-memory")
_STAT: Final = re.compile(r"stat::(\w+):\s+(\d+)")
_EXECS: Final = re.compile(r"^#(\d+)\s", re.MULTILINE)


class Outcome(NamedTuple):
    """A row of the table."""

    target: str
    runs: int
    new_files: int
    crashes: int
    hangs: int
    grew: int
    peak_mib: int
    said: str  # of a finding


def main() -> int:
    """Fuzz; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for everything together")
    parser.add_argument("targets", nargs="*", help="some targets; all, and the live abuse, where none is named")
    options = parser.parse_args()
    names = options.targets or [*list_targets(), _LIVE]
    seconds = max(1, int(options.minutes * 60 * _AT_ONCE / len(names)))
    print(f"{len(names)} targets, {_AT_ONCE} at once, {seconds} s each")
    print("target                runs new files crashes hangs growth peak MiB", flush=True)
    found = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for row in pool.map(lambda name: (_abuse if name == _LIVE else _fuzz)(name, seconds), names):
            print(
                f"{row.target:<16} {row.runs:>9} {row.new_files:>9} {row.crashes:>7} {row.hangs:>5} {row.grew:>6} "
                f"{row.peak_mib:>8}",
                flush=True,
            )
            if row.crashes or row.hangs or row.grew:
                found.append(row)
    for row in found:
        print(f"\n{row.target}:\n{row.said}")
    return 1 if found else 0


def _fuzz(target: str, seconds: int) -> Outcome:
    """Run one target, and keep what is new."""
    folder = _BUILD / target
    shutil.rmtree(folder, ignore_errors=True)
    found, seeds = folder / "found", folder / "seeds"
    for path in (found, seeds, folder_of(target)):
        path.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with log.open("wb") as out:
        status = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.child", target),
                *(f"-max_total_time={seconds}", f"-max_len={_MAX_BYTES}", f"-timeout={_HANG_S}"),
                *(f"-rss_limit_mb={_RSS_MIB}", f"-artifact_prefix={folder}/", "-print_final_stats=1", "-verbosity=1"),
                *(str(found), str(seeds), str(folder_of(target))),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "FUZZ_SEEDS": str(seeds)},
            check=False,
        ).returncode
    said = log.read_text(errors="replace")
    stats = {name: int(value) for name, value in _STAT.findall(said)}
    runs = stats.get("number_of_executed_units") or max((int(number) for number in _EXECS.findall(said)), default=0)
    hangs = len(list(folder.glob("timeout-*")))
    grew = int(bool(status and _GREW.search(said)))
    new_files = _keep(target, found) if not status else 0
    crashes = int(status != 0 and not hangs and not grew)
    return Outcome(target, runs, new_files, crashes, hangs, grew, stats.get("peak_rss_mb", 0), said[-4000:])


def _keep(target: str, found: Path) -> int:
    """Bring the corpus up to date in a process of its own, without atheris's eyes on it; how many files are new."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.corpus", target, str(found)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"{target}: the corpus stays as it was\n{done.stderr[-2000:]}")
        return 0
    return int(done.stdout.split()[-1])


def _abuse(name: str, seconds: int) -> Outcome:
    """The live abuse, with seeds that nobody has tried."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.live", "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        check=False,
    )
    words = done.stdout.split()
    runs, peak = (int(words[-2]), int(words[-1])) if done.returncode == 0 else (0, 0)
    return Outcome(name, runs, 0, int(done.returncode != 0), 0, 0, peak, (done.stdout + done.stderr)[-6000:])


if __name__ == "__main__":
    sys.exit(main())
