"""Boxes and requests for the tests of placement, by hand and drawn."""

from dataclasses import replace

from hypothesis import strategies as st

from bedsit.supervisor.placement.place import Placement, place
from bedsit.supervisor.placement.profiles import TABLES
from bedsit.supervisor.placement.request import Request, parse_request
from bedsit.supervisor.placement.rules import Rules
from bedsit.supervisor.placement.seating import Card, Node, Seating

GIB = 1 << 30
NAMES = "abcdefgh"
_DEVICES = [
    *("mig:1g.10gb", "mig:1g.10gb+me", "mig:2g.20gb", "mig:3g.40gb", "mig:4g.40gb", "mig:7g.80gb", "mig:1g.6gb"),
    *("gpu", "gpu:0.1", "gpu:0.25", "gpu:0.5", "gpu:0.9", "cpu:1", "cpu:3", "cpu:6"),
    *("core:0.1", "core:0.25", "core:0.9"),
]


def cut(name: str, model: str = "H100 80GB") -> Card:
    """A GPU with MIG."""
    return Card(name, f"NVIDIA {model}", TABLES[model].profiles[-1].memory_bytes, TABLES[model])


def whole(name: str, model: str = "H100 80GB") -> Card:
    """A GPU without."""
    return replace(cut(name, model), table=None)


def shared(name: str, *cores: int) -> Card:
    """Cores that tenants take turns on."""
    return Card(name, f"cores {name}", 0, cores=cores)


def nodes(*cores: tuple[int, ...]) -> tuple[Node, ...]:
    """NUMA nodes of these cores."""
    return tuple(Node(f"node{index}", each) for index, each in enumerate(cores))


def ask(device: str, gib: float = 0, **options: object) -> Request:
    """A request of a trusted tenant."""
    return parse_request(device, memory_bytes=int(gib * GIB), **{"trusted": True, **options})  # type: ignore[arg-type]


def fill(box: Seating, requests: dict[str, Request], rules: Rules) -> Seating:
    """The box with all of them who fit, one after the other."""
    for tenant, request in requests.items():
        placed = place(box, tenant, request, rules)
        if isinstance(placed, Placement):
            box = box.seat(tenant, request, placed.seat)
    return box


@st.composite
def requests(draw: st.DrawFn, tenant: str = "") -> Request:
    """Anything that makes sense, mostly of a size that boxes have."""
    device = draw(st.sampled_from(_DEVICES))
    is_cpu, is_share = device.startswith("c"), device.startswith(("gpu:", "core:"))
    others = [name for name in NAMES if name != tenant]
    near = draw(st.sets(st.sampled_from(others), max_size=1) if draw(st.integers(0, 4)) == 0 else st.just(set()))
    apart = draw(st.sets(st.sampled_from(others), max_size=2) if draw(st.integers(0, 4)) == 0 else st.just(set()))
    return parse_request(
        device,
        memory_bytes=0 if is_cpu else draw(st.sampled_from([0, 0, 1, 4, 9, 12, 38, 60, 100])) * GIB,
        model="" if is_cpu else draw(st.sampled_from(["", "", "", "H100", "A30"])),
        near=near,
        apart=apart - near,
        min_share=draw(st.sampled_from([0.0, 0.05, 0.1])) if is_share else 0.0,
        service_class=draw(st.sampled_from(["realtime", "interactive", "batch"])),
        trusted=draw(st.integers(0, 3)) > 0,
    )


@st.composite
def boxes(draw: st.DrawFn) -> Seating:
    """Up to four GPUs, some cores, some of them shared."""
    models = draw(st.lists(st.tuples(st.sampled_from(["H100 80GB", "A30"]), st.booleans()), max_size=4))
    cards = tuple((cut if is_cut else whole)(f"gpu{i}", model) for i, (model, is_cut) in enumerate(models))
    cards += draw(st.sampled_from([(), (shared("turns", 8, 9),), (shared("a", 8), shared("b", 9))]))
    return Seating(cards, draw(st.sampled_from([(), nodes((0, 1, 2, 3)), nodes((0, 1, 2, 3), (4, 5, 6, 7))])))


@st.composite
def rules(draw: st.DrawFn) -> Rules:
    """Both orders, with and without promising more than there is."""
    factors = draw(st.sampled_from([{}, {"batch": 4.0}, {"realtime": 1.5, "interactive": 2.5, "batch": 3.0}]))
    return Rules(draw(st.sampled_from(["pack", "spread"])), factors, draw(st.sampled_from([1.0, 1.0, 1.5])))


@st.composite
def filled(draw: st.DrawFn) -> tuple[Seating, Rules]:
    """A box in which some already sit."""
    wanted = {name: draw(requests(name)) for name in draw(st.lists(st.sampled_from(NAMES), max_size=7, unique=True))}
    drawn = draw(rules())
    return fill(draw(boxes()), wanted, drawn), drawn
