"""The corpus: ``python -m tests.fuzz.corpus TARGET FOLDER`` keeps what of it and of *FOLDER* reaches something.

At most KEPT files of at most KEPT_BYTES: a greedy cover of the pairs of lines that run one after the other in bedsit,
counted as libFuzzer does, once, a few times, often. What is in the corpus already is preferred, so that it changes
little. Prints how many files are new.
"""

import hashlib
import importlib
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import structlog

CORPUS: Final = Path(__file__).parent / "corpus"
KEPT: Final = 40
KEPT_BYTES: Final = 4 << 10
#: Of this process's own time, for the inputs of one target: looking at each line costs ten times what running it does.
_LOOKED_S: Final = 15.0
_HERE: Final = str(Path(__file__).parent)

Arc = tuple[str, int, int, int]


def folder_of(target: str) -> Path:
    """Where a target's corpus is."""
    return CORPUS / target


def list_targets() -> list[str]:
    """Every target there is, by name."""
    return sorted(path.stem for path in (Path(__file__).parent / "targets").glob("[a-z]*.py"))


def load_target(name: str) -> Any:
    """The module of a target."""
    return importlib.import_module(f"tests.fuzz.targets.{name}")


def name_of(data: bytes) -> str:
    """A file's name says what is in it, as libFuzzer's do."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()[:16]


def reduce(target: Any, old: Iterable[bytes], new: Iterable[bytes]) -> list[bytes]:
    """A small part of *old* and *new* that reaches as much as all of them, or as much as KEPT files can."""
    candidates = list(dict.fromkeys([*sorted(old, key=len), *sorted(new, key=len)]))
    reached = {}
    for data in candidates:
        if len(data) <= KEPT_BYTES and time.process_time() < _LOOKED_S:
            reached[data] = _trace(target.TestOneInput, data)
    kept: list[bytes] = []
    covered: set[Arc] = set()
    while reached and len(kept) < KEPT:
        best = max(reached, key=lambda data: len(reached[data] - covered))
        gained = reached.pop(best) - covered
        if not gained:
            break
        covered |= gained
        kept.append(best)
    return kept


def update(name: str, found: Path) -> tuple[int, int]:
    """Make the corpus of a target anew with what is in *found*; how many files it has, and how many are new."""
    target, folder = load_target(name), folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    old = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    new = [path.read_bytes() for path in found.iterdir()]
    kept = {name_of(data): data for data in reduce(target, [*target.seeds(), *old.values()], new)}
    for path in old.keys() - kept.keys():
        (folder / path).unlink()
    for path in kept.keys() - old.keys():
        (folder / path).write_bytes(kept[path])
    return len(kept), len(kept.keys() - old.keys())


def _trace(run: Callable[[bytes], None], data: bytes) -> set[Arc]:
    """The arcs that an input takes in bedsit's own files, with how often in steps of four."""
    arcs: dict[tuple[str, int, int], int] = {}
    lines: dict[FrameType, int] = {}

    def look(frame: FrameType, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        if "/bedsit/" not in path or path.startswith(_HERE):
            return None
        if event == "line":
            arc = (path, lines.get(frame, 0), frame.f_lineno)
            lines[frame] = frame.f_lineno
            arcs[arc] = arcs.get(arc, 0) + 1
        elif event == "return":
            lines.pop(frame, None)
        return look

    sys.settrace(look)
    try:
        run(data)
    finally:
        sys.settrace(None)
    return {(*arc, min(3, count.bit_length() // 2)) for arc, count in arcs.items()}


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    print(*update(sys.argv[1], Path(sys.argv[2])))
