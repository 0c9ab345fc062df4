"""What the daemon tells the router: the bytes, their defaults and their versions."""

import msgspec
import pytest

from bedsit.ipc import snapshot as view
from bedsit.ipc.errors import BedsitError

MODEL = view.ModelView("echo", 1, 2, True, [view.VersionView(2, b"\x00opaque")], rate_per_s=0.5, priority=2)
TENANT = view.TenantView(
    name="vision",
    number=7,
    state="running",
    keys=[view.KeyView("0a1b2c3d", b"d" * 32)],
    arena_bytes=1 << 20,
    queue_max=10,
    max_inflight=4,
    sessions_max=8,
    models=[MODEL],
    weight=300,
    service_class="batch",
    min_share=0.25,
    queue_bytes_max=1 << 30,
)
SNAPSHOT = view.Snapshot(3, "abc", "/run/bedsit", [TENANT], [], [view.DeviceView("", 4)], spin_us=50)


def test_comes_back_as_it_went() -> None:
    """Also where the tenants were encoded before."""
    assert view.decode(view.encode(SNAPSHOT)) == SNAPSHOT

    without = msgspec.structs.replace(SNAPSHOT, tenants=[])

    assert view.encode(without, [view.encode_tenant(TENANT)]) == view.encode(SNAPSHOT)
    assert view.decode(view.encode(SNAPSHOT, [])) == without


def test_who_says_nothing_is_held_to_nothing_new() -> None:
    """A tenant and a model of before: the usual weight and class, no rate, no gate."""
    old = view.TenantView("a", 1, "running", [], 1, 1, 1, 1, [view.ModelView("m", 1, 1, False, [])])

    assert (old.weight, old.service_class, old.min_share, old.queue_bytes_max) == (100, "interactive", 0.0, 16 << 20)
    assert (old.rate_per_s, old.burst, old.concurrency_max) == (0.0, 1, 0)
    (model,) = old.models
    assert (model.rate_per_s, model.burst, model.concurrency_max, model.queue_max, model.priority) == (0.0, 1, 0, 0, 1)
    assert (view.Snapshot(1, "", "", [], []).devices, view.Snapshot(1, "", "", [], []).spin_us) == ([], 0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a snapshot"),
        (b"\xc1", "not a snapshot"),
        (
            view.encode(msgspec.structs.replace(SNAPSHOT, version=1)),
            f"a snapshot of version 1; this router reads {view.VERSION}",
        ),
        (view.encode(SNAPSHOT).replace(b"batch", b"catch"), "not a snapshot: Invalid enum value 'catch'"),
    ],
)
def test_what_is_no_snapshot_of_ours_is_refused(data: bytes, says: str) -> None:
    """Of an older daemon too: a router that knows less than it should would let in too much."""
    with pytest.raises(BedsitError, match=says) as refused:
        view.decode(data)

    assert refused.value.code == "wire.malformed"
