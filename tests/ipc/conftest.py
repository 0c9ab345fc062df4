"""Tests of pure code: what they leave behind is looked for once per file, because looking takes longer than most."""

from collections.abc import Iterator

import pytest

from tests_support.leaks import find_leaks, take_snapshot


@pytest.fixture(scope="module", autouse=True)
def no_leaks(zmq_context: None) -> Iterator[None]:
    """Fail a file whose tests leave a process, descriptor, memfd or socket behind."""
    before = take_snapshot()
    yield
    leaks = find_leaks(before)
    if leaks:
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)
