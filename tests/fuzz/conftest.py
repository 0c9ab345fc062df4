"""A data plane for the live abuse: that of ``tests/supervisor/router``, with its own place to fork workers."""

from collections.abc import Iterator

import pytest

from tests.supervisor.router import conftest as router
from tests_support.leaks import find_leaks, take_snapshot

nursery = router.nursery
plane = router.plane


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
