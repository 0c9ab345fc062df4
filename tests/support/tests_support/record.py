"""What came of the hostile attempts of a run: said at its end, and kept in `build/security-tests.json`."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

#: Where a complete run leaves its results; ``python -m docs.attacks`` makes the table of them.
RESULTS: Final = Path(__file__).parents[3] / "build" / "security-tests.json"


class Record:
    """A pytest plugin. A run is complete when it had every test of the whole tree that is under ``attack``."""

    def __init__(self, config: pytest.Config) -> None:
        self._everything = [Path(arg).resolve() for arg in config.args] == [Path(config.rootpath, "tests").resolve()]
        self._found: dict[str, dict[str, Any]] = {}
        self._states: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Before anything is deselected."""
        self._found = {item.nodeid: dict(mark.kwargs) for item in items if (mark := item.get_closest_marker("attack"))}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst of the phases of a test is its state."""
        if report.nodeid in self._found and (report.when == "call" or not report.passed):
            state = "known" if hasattr(report, "wasxfail") else report.outcome
            self._states[report.nodeid] = "failed" if self._states.get(report.nodeid) == "failed" else state
            self._found[report.nodeid] |= dict(report.user_properties)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how many attempts were made, and how many were not refused."""
        if not self._states:
            return
        made = {self._found[test]["number"] for test in self._states}
        escapes = [
            test for test, state in self._states.items() if state == "failed" and self._found[test]["part"] == "attack"
        ]
        parts = [self._found[test]["part"] for test in self._states]
        terminalreporter.write_line(
            f"attempts {len(made)} ({parts.count('attack')} attacks, {parts.count('twin')} twins, "
            f"{parts.count('removed')} with a wall removed), escapes {len(escapes)}"
            + (f", known and not refused {known}" if (known := [*self._states.values()].count("known")) else "")
        )
        for test in escapes:
            terminalreporter.write_line(f"  {test}: {self._found[test]['title']}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Leave the results of a complete run."""
        whole = self._everything and self._found and set(self._states) == set(self._found)
        if whole and not session.config.option.collectonly:
            rows = [{"test": test, "state": self._states[test], **mark} for test, mark in sorted(self._found.items())]
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
