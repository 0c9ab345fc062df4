"""For every test: nothing may be left behind, and in CI nothing may be skipped that the machine could run."""

import gc
import os
from collections.abc import Generator, Iterator

import pytest
import zmq

from tests_support.box import Box
from tests_support.leaks import MARK, find_leaks, keep, take_snapshot

#: What a machine may lack that nobody can install; a skip for any other reason is a failure in CI.
_CANNOT_BE_INSTALLED = (
    *("no NVIDIA GPU", "no cgroup2 controllers", "systemd is not running", "not root", "needs root"),
    *("no such landlock in this kernel", "needs two cores", "needs loop devices"),
)
_FAILED = pytest.StashKey[bool]()


def pytest_configure() -> None:
    """Mark this run and everything that it starts."""
    os.environ.setdefault(MARK, f"run-{os.getpid()}")


def pytest_collection_finish() -> None:
    """Torch is loaded by now: no search for leaks, after any test, shall look through all of its objects again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where ``.ci/run`` could have installed what is missing."""
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    if report.skipped and "CI" in os.environ and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(_CANNOT_BE_INSTALLED):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped in CI: {reason}"
    return report


@pytest.fixture(scope="session", autouse=True)
def zmq_context() -> Iterator[None]:
    """Start libzmq's threads once, so that their descriptors are no test's leak."""
    with zmq.Context.instance().socket(zmq.PAIR):
        pass
    yield
    zmq.Context.instance().term()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, zmq_context: None) -> Iterator[None]:
    """Fail a test that leaves a process, descriptor, memfd, cgroup, mount or socket behind."""
    before = take_snapshot()
    yield
    leaks = find_leaks(before)
    if request.node.stash.get(_FAILED, False):
        # Its traceback keeps what its frames refer to.
        leaks = [leak for leak in leaks if not leak.startswith(("descriptor", "memfd"))]
    if leaks:
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)


@pytest.fixture
def box() -> Iterator[Box]:
    """A bedsit of this test's own: two blank slots, its own folders and uids; everything is gone afterwards."""
    yield from _keep_box()


@pytest.fixture(scope="module")
def shared_box() -> Iterator[Box]:
    """A bedsit that the tests of one file share; each makes tenants of its own."""
    yield from _keep_box()


def _keep_box() -> Iterator[Box]:
    if os.geteuid() != 0:
        pytest.skip("not root: a box needs cgroups, namespaces and users of its own")
    with Box({"pool_size": 2}) as box, keep(box.marks):
        yield box
