"""Who has which device and how much of its memory, from what was seen. Pure."""

from typing import Any

from bedsit.supervisor.devices.model import Box, Gpu, Process, Slice
from bedsit.supervisor.holdings import Holding, list_holdings
from bedsit.supervisor.placement.seating import Resident, Seat

GIB = 1 << 30
WHOLE = Slice("GPU-1", "exclusive", "H100", 80 * GIB, "GPU-1", gpu="GPU-1")
OWNERS = {11: "a", 12: "a", 21: "b"}


def box(**uses: int) -> Box:
    """A box with one GPU, on which these processes use so many GiB."""
    processes = tuple(Process(int(pid.removeprefix("p")), gib * GIB) for pid, gib in uses.items())
    gpu = Gpu("GPU-1", 1, "NVIDIA H100", memory_bytes=80 * GIB, mig="off", slices=(WHOLE,), processes=processes)
    return Box(gpus=(gpu,))


def sits(tenant: str, **seat: Any) -> Resident:
    """A tenant on that GPU."""
    request: Any = None
    return Resident(tenant, request, Seat(("GPU-1",), **seat))


def holdings(where: Box, *residents: Resident) -> list[Holding]:
    """What is listed."""
    return list(list_holdings(where, residents, OWNERS))


def test_who_has_a_gpu_alone_has_its_time_and_what_its_processes_use() -> None:
    """Children's too; a stranger's memory is nobody's."""
    assert holdings(box(p11=1, p12=2, p99=40), sits("a")) == [Holding("GPU-1", "a", 3 * GIB)]
    assert holdings(box(p99=40)) == [Holding("GPU-1")]


def test_who_takes_turns_has_memory_only() -> None:
    """Each its own."""
    shared = [sits("a", is_shared=True), sits("b", is_shared=True)]
    assert holdings(box(p11=1, p12=2, p21=4, p99=40), *shared) == [
        Holding("GPU-1", "a", 3 * GIB, takes_turns=True),
        Holding("GPU-1", "b", 4 * GIB, takes_turns=True),
    ]


def test_who_moves_from_seat_to_seat_pays_once() -> None:
    """While slots of both are there, all of them are its own."""
    both = [sits("a", is_shared=True, memory_bytes=GIB), sits("a", is_shared=True, memory_bytes=2 * GIB)]
    assert holdings(box(p11=3), *both) == [Holding("GPU-1", "a", 3 * GIB, takes_turns=True)]
