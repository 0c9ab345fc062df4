"""The table of hostile attempts, ``docs/security-tests.md``, out of the results of a complete run.

``pytest -m attack`` leaves its results in ``build/security-tests.json``; ``python -m docs.attacks`` writes the table.
``python -m docs.attacks --list`` prints the attempts that there are, without making them.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "build/security-tests.json"
TABLE: Final = ROOT / "docs/security-tests.md"
_HEAD: Final = """# Hostile attempts

Written by `python -m docs.attacks` after `pytest -m attack`; `make docs` fails when the tests name other attempts.

Each attempt is made in a real slot, with all walls, and must be refused. Its harmless twin must work in the same kind
of slot. Then a wall is taken out, by a zygote with another list of steps, and the same attempt must get further: to
success, or to the wall that is named second. No option, key or variable of the product can take a wall out.

"""
_MEND: Final = "pytest -m attack, then python -m docs.attacks"
_COLUMNS: Final = ("#", "attempt", "first wall", "second wall", "with all walls", "without", "tests")
_PARTS: Final = {"attack": "of attacks", "twin": "of twins", "removed": "with a wall removed"}

Row = dict[str, Any]


def find_problems() -> list[str]:
    """What is wrong with the table, one line each."""
    if not TABLE.exists():
        return [f"docs/security-tests.md is missing: {_MEND}"]
    return list(compare(TABLE.read_text(), collect()))


def compare(table: str, rows: Iterable[Row]) -> Iterator[str]:
    """Attempts that *table* lacks, that it has too many, or has otherwise than the tests in *rows* have them."""
    written = {_key(line) for line in table.splitlines() if line.startswith("| ")} - {_key(_render_cells(_COLUMNS))}
    groups = _group(rows)
    real = {_key(_render_line(group)) for group in groups}
    for key in sorted(real - written):
        yield f"docs/security-tests.md lacks {key[0]} ({key[1]}), or has another one: {_MEND}"
    for key in sorted(written - real):
        yield f"docs/security-tests.md has {key[0]} ({key[1]}), which no test has: {_MEND}"
    for group in groups:
        lacking = _PARTS.keys() - {row["part"] for row in group}
        if lacking and not any(row.get("known") for row in group):
            yield f"{group[0]['test']}: attempt {group[0]['number']} has no test {_PARTS[min(lacking)]}"


def collect() -> list[Row]:
    """The attempts that there are, from the tests themselves."""
    done = subprocess.run(
        [sys.executable, "-m", "docs.attacks", "--list"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the attempts cannot be listed:\n{done.stdout}{done.stderr}")
    rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return rows


def render(rows: Iterable[Row]) -> str:
    """The whole document."""
    groups = _group(rows)
    refused = [group for group in groups if not _is_known(group)]
    known = [group for group in groups if _is_known(group)]
    parts = [row["part"] for row in rows]
    counts = ", ".join(f"{parts.count(part)} {word}" for part, word in _PARTS.items())
    lines = [f"{len(groups)} attempts, {len(known)} of them not refused. Tests: {counts}.\n\n", *_render_table(refused)]
    if known:
        lines += ["\n## Known, and not refused\n\n", *_render_table(known)]
    return _HEAD + "".join(lines)


def _is_known(group: list[Row]) -> bool:
    return any(row["part"] == "attack" and row.get("state") == "known" for row in group)


def _render_table(groups: Iterable[list[Row]]) -> Iterator[str]:
    yield f"{_render_cells(_COLUMNS)}\n|{'---|' * len(_COLUMNS)}\n"
    for group in groups:
        yield _render_line(group) + "\n"


def _render_line(group: list[Row]) -> str:
    first = group[0]
    outcomes = {part: _outcomes(row for row in group if row["part"] == part) for part in ("attack", "removed")}
    cells = (
        first["number"],
        first["title"],
        first["first"],
        first["second"],
        outcomes["attack"],
        outcomes["removed"],
        _tests(group),
    )
    return _render_cells(cells)


def _render_cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _outcomes(rows: Iterable[Row]) -> str:
    return "; then ".join(dict.fromkeys(row["outcome"] for row in rows)) or "-"


def _tests(group: list[Row]) -> str:
    """Each function once, by its file: its parameters are many and say nothing here."""
    files: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for row in group:
        file, _, name = row["test"].removeprefix("tests/").partition("::")
        files[file][name.split("[")[0]] = None
    return "; ".join(f"`{file}`: {', '.join(names)}" for file, names in files.items())


def _key(line: str) -> tuple[str, ...]:
    """What must agree: number, title, walls and tests, but not what came of it on a certain machine."""
    cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    return (*cells[:4], *cells[-1:])


def _group(rows: Iterable[Row]) -> list[list[Row]]:
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["number"]].append(row)
    order = tuple(_PARTS)
    return [
        sorted(groups[number], key=lambda row: (order.index(row["part"]), row["test"].rstrip("]")))
        for number in sorted(groups, key=_in_order)
    ]


def _in_order(number: str) -> tuple[Any, ...]:
    letters, digits, rest = re.match(r"(\D*)(\d*)(.*)", number).groups()  # type: ignore[union-attr]
    return letters, int(digits or 0), rest


def _list() -> None:
    """Print what pytest finds, as JSON. Only files that can have an attempt are looked at."""
    import pytest  # noqa: PLC0415  the table itself needs none

    class Collector:
        rows: Final[list[Row]] = []

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            for item in session.items:
                if mark := item.get_closest_marker("attack"):
                    known = item.get_closest_marker("xfail") is not None
                    self.rows.append({"test": item.nodeid, "known": known, **mark.kwargs})

    collector = Collector()
    marked = re.compile(r"from tests_support\.(marks|attempts) import")
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if marked.search(path.read_text())]
    options = ["-m", "attack", "--collect-only", "-qq", "-p", "no:randomly", "-p", "no:cacheprovider"]
    status = pytest.main([*options, *files], plugins=[collector])
    print()
    print(json.dumps(collector.rows))
    sys.exit(status)


def main() -> None:
    """Write the table, or list the attempts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the attempts that there are")
    if parser.parse_args().list:
        _list()
    rows = json.loads(RESULTS.read_text())
    if failed := [row["test"] for row in rows if row["state"] not in ("passed", "known")]:
        sys.exit("\n".join(("no table is made of a run in which something failed:", *failed)))
    TABLE.write_text(render(rows))
    print(f"{TABLE.relative_to(ROOT)}: {len(_group(rows))} attempts")


if __name__ == "__main__":
    main()
