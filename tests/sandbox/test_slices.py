"""Slices of time, as the kernel has them."""

import os
import subprocess
import threading

import pytest

from bedsit.sandbox.slices import LONGEST_US, list_threads, set_slice
from tests_support.slices import HAS_SLICES, read_slice


@pytest.mark.skipif(not HAS_SLICES, reason="the kernel has no slices of one's own (6.12)")
def test_a_thread_gets_the_slice_that_it_is_given_and_hands_it_on() -> None:
    """Nothing else about it changes, and it can be given back."""
    told: dict[str, int] = {}

    def run() -> None:
        usual = read_slice(threading.get_native_id())
        os.setpriority(os.PRIO_PROCESS, 0, 3)
        set_slice([0], LONGEST_US)
        child = threading.Thread(target=lambda: told.update(child=read_slice(threading.get_native_id())))
        child.start()
        child.join()
        told["own"] = read_slice(threading.get_native_id())
        told["nice"] = os.getpriority(os.PRIO_PROCESS, 0)
        set_slice([threading.get_native_id()], 0)
        told["is_usual"] = read_slice(threading.get_native_id()) == usual

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert told == {"child": LONGEST_US, "own": LONGEST_US, "nice": 3, "is_usual": True}


@pytest.mark.skipif(not HAS_SLICES, reason="the kernel has no slices of one's own (6.12)")
def test_threads_of_another_process_are_reached() -> None:
    """All that it has."""
    with subprocess.Popen(["sleep", "60"]) as process:
        set_slice(list_threads(process.pid), LONGEST_US)
        assert [read_slice(thread) for thread in list_threads(process.pid)] == [LONGEST_US]
        process.kill()


def test_who_has_ended_is_left_alone() -> None:
    """Between the look and the call it may have; no thread is no error."""
    process = subprocess.Popen(["true"])
    process.wait()

    assert list_threads(process.pid) == []
    set_slice([process.pid], LONGEST_US)
