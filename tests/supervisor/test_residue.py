"""What a tenant leaves is nobody's afterwards: files, shared memory, arenas, pages, under the same users again.

Of a GPU's memory the driver sees to that: measured with 48 GiB, docs/gpu, T12.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bedsit

pytestmark = pytest.mark.root
#: Leaves marks wherever it can when it is told to; answers with how many it finds: files, and numbers in its answer's
#: memory before it wrote there and in pages that it has just got.
NOSY = """
    import os
    import torch

    MARK = 12345.678
    PLACES = ("/tmp", "/dev/shm", "/bundle")

    def leave(x):
        for place in PLACES:
            with open(place + "/left", "wb") as file:
                file.write(torch.full((1000,), MARK).numpy().tobytes())
        torch.full((16 << 20,), MARK)
        return torch.full_like(x, MARK)

    def seek(room):
        files = sum("left" in names for place in PLACES for _, _, names in os.walk(place))
        pages = torch.empty(16 << 20)
        return torch.tensor([[files, (room == MARK).sum(), (pages == MARK).sum(), os.getpid()]], dtype=torch.float32)

    def build(bundle):
        def call(x):
            if x[0, 0] == 1:
                room = bundle.output("x", x.shape)
                room.copy_(leave(x))
                return room
            return seek(bundle.output("x", x.shape))
        return call
"""
ROWS = 100_000


LEAVE, SEEK = np.full((ROWS, 4), 12345.678, np.float32), np.zeros((ROWS, 4), np.float32)
LEAVE[0, 0] = 1


def ask(box: Any, tenant: str, *inputs: Any) -> list[list[float]]:
    """The answers of one session."""
    with bedsit.Client(tenant=tenant, run_dir=box.run) as client:
        return [client.infer("echo", {"x": each})["x"][0].tolist() for each in inputs]


def worker_uid(box: Any, tenant: str) -> int:
    """The user that the tenant's worker is."""
    (slot,) = box.ps(tenant=tenant, state="serving")
    return int(Path(f"/proc/{slot['worker_pid']}").stat().st_uid)


def test_who_comes_next_finds_nothing_of_who_was_there(new_box: Any) -> None:
    """Not under the same two users either; the one who left it finds it, in its own slot and session."""
    box = new_box()
    box.settings |= {"max_slots": 2, "uid_count": 4}
    box.start()
    box.start_router()
    box.tenant("first", memory_bytes=1 << 30)
    box.deploy("first", source=NOSY)
    _, found = ask(box, "first", LEAVE, SEEK)
    assert found[0] == 3
    assert found[1] > 0, "its own session's memory comes back as it left it"
    left = worker_uid(box, "first")
    assert ask(box, "first", SEEK)[0][1] == 0, "another session of the same tenant has memory of its own"
    box.call("tenant.delete", name="first")

    box.tenant("second", memory_bytes=1 << 30)
    box.deploy("second", source=NOSY)
    uids = set()
    for _ in range(3):
        uids.add(worker_uid(box, "second"))
        assert ask(box, "second", SEEK)[0][:3] == [0, 0, 0]
        box.call("tenant.restart", name="second")
    assert left in uids, "a pair of users was used again"
