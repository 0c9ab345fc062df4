"""Check the documents: links lead somewhere, rows of the specification name what holds them, attempts are those made.

A row of ``specification.md`` is ``| promise | number | holder |``. A holder is a test (``tests/file.py::test_name``), a
benchmark (``bench.name: key``), or the words *test pending* with a reason. ``seen WORD`` is no number.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from docs import attacks

ROOT: Final = Path(__file__).parent.parent
SPECIFICATION: Final = ROOT / "docs/specification.md"
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)]*)?\)")
_TEST: Final = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_BENCH: Final = re.compile(r"`bench\.(\w+): (\w+)`")
_PLACEHOLDER: Final = re.compile(r"seen [A-Z]{3,}\b")


def find_problems() -> list[str]:
    """Everything that is wrong, one line each."""
    return [*_find_dead_links(), *find_bare_promises(SPECIFICATION.read_text()), *attacks.find_problems()]


def _find_dead_links() -> Iterator[str]:
    folders = ("", "docs/", "docs/adr/", "systemd/", "examples/")
    for document in (file for folder in folders for file in ROOT.glob(f"{folder}*.md")):
        for target, _ in _LINK.findall(document.read_text()):
            if "://" not in target and not (document.parent / target).exists():
                yield f"{document.relative_to(ROOT)}: {target} does not exist"


def find_bare_promises(text: str) -> Iterator[str]:
    """What is wrong with the rows of a specification."""
    for number, line in enumerate(text.splitlines(), 1):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or set(cells[0]) <= {"-"} or cells[-1] == "held by":
            continue
        where = f"docs/specification.md:{number}"
        tests, benches = _TEST.findall(cells[-1]), _BENCH.findall(cells[-1])
        if not tests and not benches and "test pending" not in cells[-1]:
            yield f"{where}: nothing holds {cells[0]!r}"
        for placeholder in _PLACEHOLDER.findall(line):
            yield f"{where}: {placeholder!r} stands where a number belongs"
        for file, name in tests:
            if name not in _list_functions(ROOT / file):
                yield f"{where}: {file} has no {name}"
        for bench, key in benches:
            source = ROOT / f"bench/{bench}.py"
            if not source.exists() or key not in source.read_text():
                yield f"{where}: bench.{bench} reports no {key}"


def _list_functions(file: Path) -> set[str]:
    if not file.exists():
        return set()
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def main() -> None:
    """Print what is wrong; exits 1 when anything is."""
    problems = find_problems()
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
