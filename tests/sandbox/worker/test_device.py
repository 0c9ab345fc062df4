"""What a blank worker says of the device that it was born for, where torch has none."""

import socket

import pytest

from bedsit.ipc.slot import Report, decode_report
from bedsit.sandbox.worker.device import keep_to_memory, wake_device


def test_a_slot_without_a_device_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a word of it."""
    monkeypatch.delenv("BEDSIT_DEVICE", raising=False)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        wake_device(theirs)
        with pytest.raises(BlockingIOError):
            ours.recv(99)


def test_a_torch_without_cuda_is_ready_and_limits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quota of its slot is the driver's and the watcher's business then."""
    monkeypatch.setenv("BEDSIT_DEVICE", "GPU-1")
    monkeypatch.setenv("BEDSIT_DEVICE_MEMORY", str(1 << 30))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        wake_device(theirs)
        assert decode_report(ours.recv(999)) == (Report.READY, 0, b"")


@pytest.mark.parametrize("size", ["1073741824", "much"])
def test_a_torch_that_takes_no_limit_says_why(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """It is of use all the same; without a quota nothing is tried."""
    monkeypatch.delenv("BEDSIT_DEVICE_MEMORY", raising=False)
    assert keep_to_memory() == ""
    monkeypatch.setenv("BEDSIT_DEVICE_MEMORY", size)
    assert keep_to_memory().startswith("torch does not limit itself: ")
