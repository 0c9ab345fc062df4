"""What every benchmark's report holds, its command line, and its table."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import bedsit

ROOT = Path(__file__).parent.parent
Measure = Callable[..., dict[str, Any]]


def run(
    name: str,
    measure: Measure,
    show: Callable[[Mapping[str, Any]], None],
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _parser: None,
    *,
    needs_box: bool = True,
) -> NoReturn:
    """Read ``--json FILE`` and ``--quick``, measure, print, write; exits 0 when it measured and 1 when it could not.

    *measure* takes whether to be quick, and by name the values of the options that *add_options* adds; it gives the
    report's own keys, ``walls`` among them where it *needs_box*, a running bedsit.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", allow_abbrev=False)
    add_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--quick", action="store_true", help="a minute at most, with fewer samples")
    options = vars(parser.parse_args())
    file, quick = options.pop("json"), options.pop("quick")
    _begin_without_threads(name)
    began = time.monotonic()
    try:
        if needs_box and os.geteuid() != 0:
            raise PermissionError("a benchmark starts a bedsit, and that needs root")
        report = {**_describe(name, quick=quick), **measure(quick, **options)}
    except (RuntimeError, OSError, bedsit.BedsitError) as e:
        print(f"{name}: not measured: {e}", file=sys.stderr)
        sys.exit(1)
    show(report)
    walls = f"walls: {_count_walls(report['walls'])}; " if needs_box else ""
    print(f"{walls}{time.monotonic() - began:.0f} s")
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(0)


def add_minutes(parser: argparse.ArgumentParser) -> None:
    """``--minutes N``, for what is the better the longer it runs."""
    parser.add_argument("--minutes", type=float, metavar="N", help="how long (10, or half a minute with --quick)")


def _begin_without_threads(name: str) -> None:
    """Start again with one thread in numpy and torch, which read the environment when they are imported.

    Benchmarks fork, and a fork of a process that has threads may hang.
    """
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if any(os.environ.get(key) != value for key, value in one.items()):
        os.execve(sys.executable, [sys.executable, "-m", f"bench.{name}", *sys.argv[1:]], {**os.environ, **one})  # noqa: S606


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns, the first to the left, the rest to the right; a float gets as many digits as it deserves."""
    texts = [list(head), *([_format(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    for row in texts:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))


def _format(cell: object) -> str:
    if cell is None:
        return "-"
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def _count_walls(walls: Mapping[str, str]) -> str:
    off = [f"{layer} {state.removeprefix('off: ')}" for layer, state in walls.items() if state != "on"]
    return f"{len(walls) - len(off)} of {len(walls)} on" + (f" (off: {'; '.join(off)})" if off else "")


def _describe(name: str, *, quick: bool) -> dict[str, Any]:
    return {
        "name": name,
        "version": bedsit.__version__,
        "commit": _find_commit(),
        "machine": {
            "cpu": _find_cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "cgroup": _find_cgroup(),
            "gpu": _find_gpu(),
        },
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
    }


def _find_commit() -> str | None:
    """The commit of the tree, with a plus when it was changed since; None outside of a checkout."""
    answers = []
    for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain")):
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return None
        answers.append(done.stdout.strip())
    return answers[0] + ("+" if answers[1] else "")


def _find_cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _find_cgroup() -> str:
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    return "v2" if controllers.exists() and "memory" in controllers.read_text().split() else "v1"


def _find_gpu() -> str | None:
    """The first GPU's name as its driver tells it; None without a NVIDIA driver."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None
