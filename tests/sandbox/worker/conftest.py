"""Workers without a jail, from the data plane of ``tests/supervisor/router``."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests_support.leaks import find_leaks, take_snapshot

_shared = runpy.run_path(str(Path(__file__).parents[2] / "supervisor" / "router" / "conftest.py"))
nursery = _shared["nursery"]
plane = _shared["plane"]


@pytest.fixture(scope="module", autouse=True)
def no_leaks(request: pytest.FixtureRequest, zmq_context: None) -> Iterator[None]:
    """Fail a file that leaves something behind: looking after each of its tests would take longer than they do."""
    if any("nursery" in getattr(i, "fixturenames", ()) for i in request.session.items if i.path == request.path):
        request.getfixturevalue("nursery")  # it lives as long as the session
    before = take_snapshot()
    yield
    leaks = find_leaks(before)
    if leaks:
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)
