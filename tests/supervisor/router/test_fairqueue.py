"""Start-time fair queueing: by hand, against the same done slowly, and on a simulated box."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, cycle, islice
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bedsit.ipc.snapshot import ServiceClass
from bedsit.supervisor.router.fairqueue import FairQueue
from tests_support.fairsim import Job, Run, SlowQueue, measure_jain, serve_fluid, simulate

MS = 1_000_000
SECOND = 1000 * MS
WEIGHTS = st.sampled_from([1, 2, 3, 100, 10_000, 0.25])
COSTS = st.lists(st.integers(MS, 50 * MS), min_size=1, max_size=4)
WRONG = st.sampled_from([0, 0.1, 1, 10, 1e6])
FOREVER = 10**30
box = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make(weights: Mapping[str, float], **terms: Any) -> FairQueue:
    """A queue with these flows, all of which rest."""
    queue = FairQueue()
    for name, weight in weights.items():
        queue.add(name, weight, **terms)
    return queue


def run_one(queue: FairQueue, estimate_ns: int, measured_ns: int | None = None, now_ns: int = 0) -> str:
    """Let the next flow run one batch on a box of its own; gives its name."""
    name = queue.pick(now_ns)
    assert name is not None
    queue.start(name, estimate_ns, now_ns)
    queue.settle(name, estimate_ns, estimate_ns if measured_ns is None else measured_ns, now_ns)
    return name


def fill(flow: str, costs: Sequence[int], until_ns: int, *, at_ns: int = 0, wrong: Sequence[float] = (1,)) -> list[Job]:
    """Work for one server until then, which waits from *at_ns* on; estimates are *wrong* by these factors in turn."""
    jobs: list[Job] = []
    factors, total = cycle(wrong), 0
    for cost in cycle(costs):
        jobs.append(Job(flow, at_ns, cost, int(cost * next(factors))))
        total += cost
        if total >= until_ns or len(jobs) >= 20_000:
            return jobs
    raise AssertionError


def longest(jobs: Sequence[Job], flow: str) -> int:
    """The cost of a flow's longest batch."""
    return max((job.cost_ns for job in jobs if job.flow == flow), default=0)


def served(runs: Sequence[Run], flow: str, start_ns: int = 0, end_ns: int = 1 << 62) -> int:
    """How much of a flow was served in an interval."""
    return sum(run.served_until(end_ns) - run.served_until(start_ns) for run in runs if run.flow == flow)


def find_gains(runs: Sequence[Run], one: str, other: str, weights: Mapping[str, float], *, both: bool) -> float:
    """The most that *one* got more than *other*, by weight, in any interval in which *other* (or *both*) waited."""
    now = lowest = most = 0.0
    for run in runs:
        if other not in run.waited or (both and one not in run.waited):
            lowest = now
        now += (run.flow == one) * run.job.cost_ns / weights[one] - (run.flow == other) * run.job.cost_ns / weights[
            other
        ]
        if other not in run.waited or (both and one not in run.waited):
            lowest = now
        lowest = min(lowest, now)
        most = max(most, now - lowest)
    return most


def check_bound(runs: Sequence[Run], jobs: Sequence[Job], weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Theorem 1 of the paper, for all pairs and intervals, and half of it for flows that need not have waited."""
    for one, other in combinations(names, 2):
        bound = longest(jobs, one) / weights[one] + longest(jobs, other) / weights[other]
        for first, second in ((one, other), (other, one)):
            assert find_gains(runs, first, second, weights, both=False) <= bound * (1 + 1e-6)


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_nobody_is_picked_where_nobody_waits() -> None:
    """Flows that rest, and no flows at all."""
    assert FairQueue().pick(0) is None
    assert make({"a": 1}).pick(0) is None


def test_tags_are_those_of_the_paper() -> None:
    """F = S + cost / weight, S = max(V, F), and V is the start tag of what went last."""
    queue = make({"a": 1, "b": 2})
    queue.wake("a")
    queue.wake("b")
    assert [run_one(queue, 100) for _ in range(6)] == ["a", "b", "b", "a", "b", "b"]
    tags = queue.statistics()
    assert (tags["a"].start_tag, tags["b"].start_tag) == (200, 200)
    queue.rest("b")
    assert [run_one(queue, 100) for _ in range(3)] == ["a"] * 3
    queue.wake("b")
    assert queue.statistics()["b"].start_tag == 400
    queue.add("c")
    queue.wake("c")
    assert queue.statistics()["c"].start_tag == 400


def test_who_waits_already_may_wake_again_and_who_rests_may_rest() -> None:
    """Neither changes a tag or a turn."""
    queue = make({"a": 1, "b": 1})
    queue.rest("a")
    for name in "abba":
        queue.wake(name)
    assert queue.pick(0) == "a"
    queue.rest("a")
    queue.rest("a")
    assert queue.pick(0) == "b"


def test_a_batch_that_runs_is_charged_already() -> None:
    """Four servers that are free at once go to four flows, and not to the one that was picked first."""
    queue = make(dict.fromkeys("abcd", 1))
    for name in "abcd":
        queue.wake(name)
    picked = []
    for _ in range(4):
        picked.append(queue.pick(0))
        queue.start(picked[-1] or "", 100, 0)
    assert picked == ["a", "b", "c", "d"]


def test_a_newcomer_is_first_among_equals() -> None:
    """With equal costs tags are equal all the time, and a lone request does not wait for everybody's turn."""
    queue = make(dict.fromkeys("abcd", 1))
    for name in "abc":
        queue.wake(name)
    for _ in range(3 * 5 + 1):
        run_one(queue, 100)
    queue.wake("d")
    assert run_one(queue, 100) == "d"
    assert run_one(queue, 100) == "b"


def test_who_is_excluded_is_not_picked() -> None:
    """The next one is; nobody, where all are."""
    queue = make(dict.fromkeys("abc", 1))
    for name in "abc":
        queue.wake(name)
    assert queue.pick(0, {"a"}) == "b"
    assert queue.pick(0, {"a", "b"}) == "c"
    assert queue.pick(0, {"a", "b", "c"}) is None
    assert queue.pick(0) == "a"


@pytest.mark.parametrize("estimate_ns", [0, 1, FOREVER, 10**400])
def test_an_absurd_estimate_leaves_nothing(estimate_ns: int) -> None:
    """Tags after the settlement are those of a right estimate, to the nanosecond."""
    queues = make({"a": 3, "b": 1}), make({"a": 3, "b": 1})
    for queue, estimate in zip(queues, (estimate_ns, 12_345), strict=True):
        queue.wake("a")
        queue.wake("b")
        assert run_one(queue, estimate, 12_345) == "a"
        assert run_one(queue, estimate, 1_000_003) == "b"
    assert queues[0].statistics() == queues[1].statistics()


def test_other_terms_hold_at_once_and_keep_the_place() -> None:
    """A new weight counts from the next batch on; in another class a flow is as far ahead as it was in its own."""
    queue = make({"a": 1, "b": 1})
    queue.add("c", 1, "batch")
    queue.wake("a")
    for _ in range(5):
        run_one(queue, 100)
    queue.start("a", 100, 0)
    queue.wake("c")
    run_one(queue, 30)  # a, which is of the higher class
    queue.update("a", 4, "batch", 0)
    assert queue.statistics()["a"].finish_tag == 30
    queue.settle("a", 100, 90, 0)
    assert queue.statistics()["a"].finish_tag == 20
    assert run_one(queue, 100) == "c"
    assert run_one(queue, 100) == "a"
    assert queue.statistics()["a"].finish_tag == 45


def test_virtual_time_does_not_go_back() -> None:
    """A flow that was excluded starts with an older tag, and whoever comes then does not."""
    queue = make({"a": 1, "b": 1, "c": 1})
    queue.wake("a")
    queue.wake("b")
    for _ in range(3):
        queue.start("a", 100, 0)
    queue.start("b", 10, 0)
    queue.wake("c")
    assert queue.statistics()["c"].start_tag == 200


def test_costs_count_as_if_they_had_been_known() -> None:
    """A refund for a batch from before a flow was idle buys nothing, and an overrun from then counts once."""
    queue = make({"a": 1, "b": 1})
    queue.wake("a")
    queue.start("a", 100, 0)
    queue.rest("a")
    queue.wake("b")
    for _ in range(4):
        run_one(queue, 50)
    queue.wake("a")  # at 150, as the virtual time has passed 100
    assert queue.statistics()["a"].start_tag == 150
    queue.settle("a", 100, 0, 0)
    assert queue.statistics()["a"].start_tag == 150
    queue.start("a", 7, 0)
    queue.rest("a")
    queue.settle("a", 7, 300, 0)
    assert queue.statistics()["a"].finish_tag == 450


def test_a_worker_that_was_away_is_not_owed_its_absence() -> None:
    """After a minute in which it waited and was excluded, a flow catches up on a tenth of a window and no more."""
    queue = make({"a": 1, "b": 1})
    queue.wake("a")
    queue.wake("b")
    for turn in range(6000):
        assert queue.pick(turn * 10 * MS, {"a"}) == "b"
        queue.start("b", 10 * MS, turn * 10 * MS)
        queue.settle("b", 10 * MS, 10 * MS, (turn + 1) * 10 * MS)
    turns = [run_one(queue, 10 * MS, now_ns=60 * SECOND) for _ in range(40)]
    assert turns[:10] == ["a"] * 10
    assert turns.count("a") - turns.count("b") <= 12


def test_statistics_tell_what_a_flow_does() -> None:
    """What was served, what waits and what runs; absurd estimates can be shown, too."""
    queue = make({"a": 2})
    queue.wake("a")
    queue.start("a", FOREVER, 0)
    queue.start("a", 10, 0)
    queue.settle("a", 10, 30, 5)
    found = queue.statistics()["a"]
    assert (found.served_ns, found.waiting, found.running) == (30, True, 1)
    assert found.finish_tag == FOREVER // 2 + 15
    queue.rest("a")
    queue.settle("a", FOREVER, 10, 9)
    found = queue.statistics()["a"]
    assert (found.served_ns, found.waiting, found.running, found.finish_tag) == (40, False, 0, 20)


MISUSE: dict[str, tuple[type[Exception], Callable[[FairQueue], Any]]] = {
    "add: known name": (ValueError, lambda queue: queue.add("a")),
    "add: weight 0": (ValueError, lambda queue: queue.add("c", 0)),
    "add: weight below 0": (ValueError, lambda queue: queue.add("c", -1)),
    "add: weight nan": (ValueError, lambda queue: queue.add("c", math.nan)),
    "add: weight inf": (ValueError, lambda queue: queue.add("c", math.inf)),
    "add: no such class": (ValueError, lambda queue: queue.add("c", service_class="vip")),  # type: ignore[arg-type]
    "add: share below 0": (ValueError, lambda queue: queue.add("c", min_share=-0.1)),
    "add: share above 1": (ValueError, lambda queue: queue.add("c", min_share=1.1)),
    "add: share nan": (ValueError, lambda queue: queue.add("c", min_share=math.nan)),
    "add: shares above 1": (ValueError, lambda queue: queue.add("c", min_share=0.41)),
    "update: unknown": (KeyError, lambda queue: queue.update("z", 1, "batch", 0)),
    "update: weight 0": (ValueError, lambda queue: queue.update("a", 0, "batch", 0)),
    "update: no such class": (ValueError, lambda queue: queue.update("a", 1, "vip", 0)),  # type: ignore[arg-type]
    "update: shares above 1": (ValueError, lambda queue: queue.update("a", 5, "batch", 0.5)),
    "remove: unknown": (KeyError, lambda queue: queue.remove("z")),
    "wake: unknown": (KeyError, lambda queue: queue.wake("z")),
    "rest: unknown": (KeyError, lambda queue: queue.rest("z")),
    "start: unknown": (KeyError, lambda queue: queue.start("z", 1, 0)),
    "start: nothing waits": (ValueError, lambda queue: queue.start("b", 1, 0)),
    "start: below 0": (ValueError, lambda queue: queue.start("a", -1, 0)),
    "start: inf": (ValueError, lambda queue: queue.start("a", math.inf, 0)),  # type: ignore[arg-type]
    "start: nan": (ValueError, lambda queue: queue.start("a", math.nan, 0)),  # type: ignore[arg-type]
    "settle: unknown": (KeyError, lambda queue: queue.settle("z", 1, 1, 0)),
    "settle: twice": (ValueError, lambda queue: queue.settle("b", 5, 5, 0)),
    "settle: other estimate": (ValueError, lambda queue: queue.settle("a", 8, 7, 0)),
    "settle: below 0": (ValueError, lambda queue: queue.settle("a", 7, -1, 0)),
    "settle: nan": (ValueError, lambda queue: queue.settle("a", 7, math.nan, 0)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_and_changes_nothing(name: str) -> None:
    """A clear error, and the queue goes on as if nobody had asked."""
    kind, misuse = MISUSE[name]
    queue = FairQueue()
    queue.add("a", 2)
    queue.add("b", 1, "realtime", 0.6)
    for flow in "ba":
        queue.wake(flow)
        queue.start(flow, 5, 0)
        queue.settle(flow, 5, 5, 0)
    queue.start("a", 7, 0)
    queue.rest("b")
    before = queue.statistics()
    with pytest.raises(kind):
        misuse(queue)
    assert queue.statistics() == before
    assert queue.pick(0) == "a"
    queue.settle("a", 7, 7, 0)
    queue.add("c", min_share=0.4)


@pytest.mark.parametrize("cap", [-0.1, 1.0, math.nan])
def test_a_cap_that_lets_classes_starve_is_refused(cap: float) -> None:
    """All of a window is too much, and so is what is no number."""
    with pytest.raises(ValueError, match="a cap is"):
        FairQueue(cap)


def test_parts_that_add_up_to_1_about_are_accepted() -> None:
    """Ten times 0.1 is not 1 for a computer."""
    queue = FairQueue()
    for number in range(10):
        queue.add(f"t{number}", min_share=0.1)
    for number in range(10):
        queue.update(f"t{number}", 1, "batch", 0.1)


@pytest.mark.parametrize("state", ["rests", "waits", "runs", "runs and waits"])
def test_a_flow_is_removed_in_any_state(state: str) -> None:
    """Nothing of it is left, the others go on, and its name may come again with nothing in tow."""
    queue = FairQueue()
    queue.add("a", 1, "realtime", 0.5)
    queue.add("b")
    queue.wake("b")
    if state != "rests":
        queue.wake("a")
    if "runs" in state:
        queue.start("a", FOREVER, 0)
    if state == "runs":
        queue.rest("a")
    queue.remove("a")
    assert run_one(queue, 5) == "b"
    queue.add("a", 1, "realtime", 1.0)
    assert queue.statistics()["a"].running == 0
    assert queue.pick(0) == "b"


def test_a_clock_that_steps_back_stands_still() -> None:
    """Whatever the clock does, whoever waits is served."""
    queue = FairQueue()
    for name, each in (("a", "realtime"), ("b", "interactive"), ("c", "batch")):
        queue.add(name, 1, each, 0.1)  # type: ignore[arg-type]
        queue.wake(name)
    seen = [run_one(queue, MS, now_ns=now_ns) for now_ns in (5 * SECOND, 0, -SECOND, 9 * SECOND, 3) for _ in range(40)]
    assert set(seen) == {"a", "b", "c"}


def test_what_is_remembered_does_not_grow() -> None:
    """A hundred thousand batches beside one that never ends leave as little behind as one does."""
    queue = make({"a": 1})
    queue.wake("a")
    queue.start("a", 3, 0)
    for turn in range(1000):
        queue.start("a", 5, turn * MS)
        queue.start("a", 6, turn * MS)
        queue.settle("a", 6, 4, turn * MS)
        queue.settle("a", 5, 7, turn * MS)
        if turn % 3 == 0:
            queue.rest("a")
            queue.wake("a")
        assert len(queue._flows["a"].steps) <= 3


# -- against the same done slowly -------------------------------------------------------------------------------------

NAMES = st.sampled_from("abcd")
FEW = st.sampled_from([0, 1, 2, 3, 7, 20, FOREVER])
POWERS = st.sampled_from([0.5, 1, 2, 8])


class Twins(RuleBasedStateMachine):
    """Whatever is asked of one class in whatever order, both queues agree on tags and turns."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = FairQueue(window_ns=100)
        self.slow = SlowQueue(slack_ns=10)
        self.running: list[tuple[str, int]] = []
        for name in "abc":
            self.add_or_weigh(name, 1)
            self.wake_or_rest(name, wakes=True)

    @rule(name=NAMES, weight=POWERS)
    def add_or_weigh(self, name: str, weight: float) -> None:
        if name in self.slow.flows:
            self.fast.update(name, weight, "interactive", 0)
            self.slow.weigh(name, weight)
        else:
            self.fast.add(name, weight)
            self.slow.add(name, weight)

    @rule(name=NAMES, often=st.integers(0, 3))
    def remove(self, name: str, often: int) -> None:
        if name in self.slow.flows and not often:
            self.fast.remove(name)
            self.slow.remove(name)
            self.running = [(flow, estimate) for flow, estimate in self.running if flow != name]

    @rule(name=NAMES, wakes=st.booleans())
    def wake_or_rest(self, name: str, *, wakes: bool) -> None:
        if name in self.slow.flows:
            for queue in (self.fast, self.slow):
                (queue.wake if wakes else queue.rest)(name)

    @rule(estimates=st.lists(FEW, min_size=1, max_size=4), exclude=st.frozensets(NAMES, max_size=2))
    def start(self, estimates: list[int], exclude: frozenset[str]) -> None:
        for estimate_ns in estimates:
            name = self.slow.pick(0, exclude)
            assert self.fast.pick(0, exclude) == name
            if name is not None:
                self.fast.start(name, estimate_ns, 0)
                self.slow.start(name, estimate_ns, 0)
                self.running.append((name, estimate_ns))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), measured_ns=FEW, guessed_right=st.booleans())
    def settle(self, data: st.DataObject, measured_ns: int, *, guessed_right: bool) -> None:
        name, estimate_ns = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        measured_ns = estimate_ns if guessed_right else measured_ns
        self.fast.settle(name, estimate_ns, measured_ns, 0)
        self.slow.settle(name, estimate_ns, measured_ns, 0)

    @invariant()
    def agree(self) -> None:
        found = self.fast.statistics()
        assert set(found) == set(self.slow.flows)
        for name, flow in self.slow.flows.items():
            assert found[name].finish_tag == math.floor(flow.tag())
            assert found[name].waiting == (flow.turn is not None)
            assert found[name].running == sum(running == name for running, _ in self.running)
            assert len(self.fast._flows[name].steps) <= 2 * found[name].running + 1
        assert self.fast.pick(0) == self.slow.pick(0)


TestTwins = Twins.TestCase
TestTwins.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

CLASSES = st.sampled_from(["realtime", "interactive", "batch"])


class Anything(RuleBasedStateMachine):
    """With classes, minima and all times: whoever waits is picked, and nothing is left of what is over."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue()
        self.waiting: set[str] = set()
        self.known: set[str] = set()
        self.running: list[tuple[str, int]] = []
        self.now_ns = 0

    @rule(name=NAMES, weight=WEIGHTS, each=CLASSES, share=st.sampled_from([0, 0.1, 0.25]))
    def add_or_update(self, name: str, weight: float, each: ServiceClass, share: float) -> None:
        (self.queue.update if name in self.known else self.queue.add)(name, weight, each, share)
        self.known.add(name)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name in self.known:
            self.queue.remove(name)
            self.known.remove(name)
            self.waiting.discard(name)
            self.running = [(flow, estimate) for flow, estimate in self.running if flow != name]

    @rule(name=NAMES)
    def wake(self, name: str) -> None:
        if name in self.known:
            self.queue.wake(name)
            self.waiting.add(name)

    @rule(name=NAMES)
    def rest(self, name: str) -> None:
        if name in self.known:
            self.queue.rest(name)
            self.waiting.discard(name)

    @rule(step_ns=st.sampled_from([0, MS, 50 * MS, 10 * SECOND, -SECOND]))
    def wait(self, step_ns: int) -> None:
        self.now_ns += step_ns

    @rule(estimate_ns=st.sampled_from([0, MS, 100 * MS, FOREVER]), exclude=st.frozensets(NAMES, max_size=3))
    def start(self, estimate_ns: int, exclude: frozenset[str]) -> None:
        name = self.queue.pick(self.now_ns, exclude)
        able = self.waiting - exclude
        assert name in able if able else name is None
        if name is not None:
            self.queue.start(name, estimate_ns, self.now_ns)
            self.running.append((name, estimate_ns))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), measured_ns=st.sampled_from([0, MS, 100 * MS, 10 * SECOND]))
    def settle(self, data: st.DataObject, measured_ns: int) -> None:
        name, estimate_ns = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.queue.settle(name, estimate_ns, measured_ns, self.now_ns)

    @invariant()
    def nothing_is_left(self) -> None:
        flows = self.queue._flows
        assert {name for name, flow in flows.items() if flow.place} == self.waiting
        assert {name for name in self.waiting if flows[name].min_share} == set(self.queue._promised)
        assert sorted(place[-1] for each in self.queue._classes for place in each.waiting) == sorted(self.waiting)
        for level, each in enumerate(self.queue._classes):
            members = [flow for flow in flows.values() if flow.level == level]
            assert each.waiting == sorted(flow.place for flow in members if flow.place)
            assert each.pending_ns == sum(flow.pending_ns for flow in members)
            for window in (each.taken, *each.passed):
                assert window._sum == sum(window._buckets) >= 0
        for name, flow in flows.items():
            expected = [min(estimate, SECOND) for running, estimate in self.running if running == name]
            assert (flow.pending_ns, flow.running) == (sum(expected), len(expected))


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# -- on a box: fairness within a class --------------------------------------------------------------------------------


@given(st.lists(st.tuples(WEIGHTS, COSTS, st.lists(WRONG, min_size=1, max_size=3)), min_size=2, max_size=4))
@box
def test_backlogged_flows_differ_by_a_batch_each(flows: list[tuple[float, list[int], list[float]]]) -> None:
    """On one server the bound of the paper holds for every pair in every interval, however wrong the estimates."""
    weights = {f"t{number}": flow[0] for number, flow in enumerate(flows)}
    jobs = [
        job for name, flow in zip(weights, flows, strict=True) for job in fill(name, flow[1], SECOND, wrong=flow[2])
    ]
    runs = simulate(make(weights), jobs, until_ns=SECOND)
    check_bound(runs, jobs, weights, list(weights))


@given(st.lists(st.tuples(WEIGHTS, COSTS), min_size=2, max_size=4), st.integers(2, 5))
@box
def test_on_several_servers_what_starts_differs_by_a_batch_each(
    flows: list[tuple[float, list[int]]], servers: int
) -> None:
    """The same bound, for what was started, where costs are known."""
    weights = {f"t{number}": flow[0] for number, flow in enumerate(flows)}
    jobs = [job for name, flow in zip(weights, flows, strict=True) for job in fill(name, flow[1], 2 * SECOND)]
    runs = simulate(make(weights), jobs, servers=servers, until_ns=SECOND)
    check_bound(runs, jobs, weights, list(weights))


@given(
    st.tuples(WEIGHTS, COSTS),
    st.tuples(WEIGHTS, COSTS),
    st.lists(st.tuples(st.integers(0, 200 * MS), st.integers(1, 6)), min_size=1, max_size=12),
    st.lists(WRONG, min_size=1, max_size=3),
)
@box
def test_who_alternates_between_idle_and_busy_gains_nothing(
    cheat: tuple[float, list[int]],
    honest: tuple[float, list[int]],
    bursts: list[tuple[int, int]],
    wrong: list[float],
) -> None:
    """In no interval does a flow with bursts and pauses get more, by weight, than one that waits all the time."""
    weights = {"cheat": cheat[0], "honest": honest[0]}
    jobs, at_ns, costs = fill("honest", honest[1], 2 * SECOND), 0, cycle(cheat[1])
    for pause_ns, size in bursts:
        at_ns += pause_ns
        jobs += [Job("cheat", at_ns, cost, int(cost * wrong[0])) for cost in islice(costs, size)]
    runs = simulate(make(weights), jobs, until_ns=2 * SECOND)
    check_bound(runs, jobs, weights, list(weights))


@pytest.mark.parametrize("servers", [1, 2, 4])
@pytest.mark.parametrize("think_ns", [0, 1, 3 * MS, 40 * MS])
@pytest.mark.parametrize("wrong", [0, 0.1, 1, 10])
def test_a_closed_loop_gains_nothing(servers: int, think_ns: int, wrong: float) -> None:
    """Clients that ask again when they are answered, and so are idle all the time, get no more than their share."""
    weights = {"cheat": 1.0, "honest": 1.0, "other": 1.0}
    jobs = [job for name in ("honest", "other") for job in fill(name, [7 * MS, 2 * MS], servers * 3 * SECOND)]
    jobs += [Job("cheat", 0, 5 * MS, int(5 * MS * wrong)) for _ in range(2 * servers)]

    def ask_again(run: Run) -> Job | None:
        return Job("cheat", run.end_ns + think_ns, 5 * MS, run.job.estimate_ns) if run.flow == "cheat" else None

    runs = simulate(make(weights), jobs, servers=servers, until_ns=3 * SECOND, then=ask_again)
    got = {name: served(runs, name, 0, 3 * SECOND) for name in weights}
    assert got["cheat"] <= 1.02 * min(got["honest"], got["other"])


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), COSTS), min_size=1, max_size=5),
    st.integers(300 * MS, SECOND),
    st.integers(1, 4),
)
@box
def test_a_lone_request_is_next(flows: list[tuple[float, list[int]]], at_ns: int, servers: int) -> None:
    """It waits for what runs when it comes, one batch on each server at most, however many wait already."""
    weights = {f"t{number}": flow[0] for number, flow in enumerate(flows)}
    jobs = [job for name, flow in zip(weights, flows, strict=True) for job in fill(name, flow[1], 2 * servers * SECOND)]
    jobs.append(Job("lone", at_ns, MS, MS))
    runs = simulate(make(weights | {"lone": 1}), jobs, servers=servers, until_ns=2 * SECOND)
    (lone,) = (run for run in runs if run.flow == "lone")
    assert not [run for run in runs if at_ns < run.start_ns < lone.start_ns]
    before = [run for run in runs if run.start_ns <= at_ns < run.end_ns]
    assert lone.start_ns <= min((run.end_ns for run in before), default=at_ns)


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_weights_hold_where_costs_are_ten_times_apart(servers: int) -> None:
    """Jain's index of service by weight is at least 0.99 over a long run."""
    weights = {f"t{weight}{size}": float(weight) for weight in (1, 2, 4) for size in (3, 30)}
    jobs = [job for name in weights for job in fill(name, [int(name[2:]) * MS], servers * 5 * SECOND)]
    runs = simulate(make(weights), jobs, servers=servers, until_ns=5 * SECOND)
    assert measure_jain([served(runs, name, 0, 5 * SECOND) / weight for name, weight in weights.items()]) >= 0.99


@given(
    st.lists(st.tuples(WEIGHTS, COSTS, st.integers(20 * MS, SECOND)), min_size=2, max_size=4),
    st.integers(1, 3),
    st.integers(1, SECOND),
)
@box
def test_service_is_that_of_an_ideal_fluid(
    flows: list[tuple[float, list[int], int]], servers: int, until_ns: int
) -> None:
    """While somebody waits, nobody is further from generalised processor sharing than the longest batches together."""
    weights = {f"t{number}": flow[0] for number, flow in enumerate(flows)}
    jobs = [job for name, flow in zip(weights, flows, strict=True) for job in fill(name, flow[1], flow[2])]
    runs = simulate(make(weights), jobs, servers=servers)
    until_ns = min(until_ns, runs[-1].start_ns)  # until then somebody waits
    fluid = serve_fluid(jobs, weights, servers, until_ns, {})
    each = [longest(jobs, name) for name in weights]
    # Service is min(all of a flow, weight * v) up to a batch for one v, and so is the fluid's for another; both v give
    # the same sum, up to a batch of each flow and one that runs on each server.
    bound = sum(each) + max(each) * (1 + servers)
    for name in weights:
        assert abs(served(runs, name, 0, until_ns) - fluid[name]) <= bound


@pytest.mark.parametrize("servers", [1, 2, 4])
@pytest.mark.parametrize("wrong", [(0,), (0.1,), (10,), (0, 10, 1)])
def test_wrong_estimates_gain_nothing_in_the_long_run(servers: int, wrong: tuple[float, ...]) -> None:
    """Whoever is wrong, in whichever direction, nobody gets more than a share by weight, and nobody less."""
    weights = {"wrong": 2.0, "right": 1.0, "other": 1.0}
    jobs = fill("wrong", [4 * MS, 8 * MS], servers * 5 * SECOND, wrong=wrong)
    jobs += fill("right", [10 * MS, 3 * MS], servers * 5 * SECOND) + fill("other", [5 * MS], servers * 5 * SECOND)
    runs = simulate(make(weights), jobs, servers=servers, until_ns=5 * SECOND)
    for name, weight in weights.items():
        share = served(runs, name, 0, 5 * SECOND) / (servers * 5 * SECOND)
        assert abs(share - weight / 4) <= 0.01


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_absurd_estimates_cost_nobody_else(servers: int) -> None:
    """Who is estimated a million times too high has its share or one server, and the others share what it leaves."""
    weights = {"wrong": 2.0, "right": 1.0, "other": 1.0}
    jobs = fill("wrong", [40 * MS, 80 * MS], servers * 5 * SECOND, wrong=[1e6])
    jobs += fill("right", [100 * MS, 30 * MS], servers * 5 * SECOND) + fill("other", [50 * MS], servers * 5 * SECOND)
    runs = simulate(make(weights), jobs, servers=servers, until_ns=5 * SECOND)
    got = {name: served(runs, name, 0, 5 * SECOND) / (servers * 5 * SECOND) for name in weights}
    assert min(0.5, 1 / servers) - 0.01 <= got["wrong"] <= 0.51
    assert abs(got["right"] - got["other"]) <= 0.01


def test_a_flow_with_one_worker_uses_that_and_the_rest_is_shared() -> None:
    """A weight that is worth more servers than a flow has workers piles up no claim, and costs newcomers nothing."""
    weights = {"heavy": 10.0, "one": 1.0, "two": 1.0, "late": 1.0}
    jobs = [job for name in ("heavy", "one", "two") for job in fill(name, [5 * MS], 6 * SECOND)]
    jobs += fill("late", [5 * MS], 6 * SECOND, at_ns=2 * SECOND)
    runs = simulate(make(weights), jobs, servers=2, until_ns=4 * SECOND, workers={"heavy": 1})
    assert served(runs, "heavy", 0, 4 * SECOND) >= 3.9 * SECOND
    shares = [served(runs, name, 2 * SECOND, 4 * SECOND) for name in ("one", "two", "late")]
    assert max(shares) - min(shares) <= 30 * MS


# -- on a box: classes ------------------------------------------------------------------------------------------------


def make_classes(names: Sequence[str] = ("realtime", "interactive", "batch")) -> FairQueue:
    """A queue with a flow in each of these classes, named after it."""
    queue = FairQueue()
    for name in names:
        queue.add(name, service_class=name)  # type: ignore[arg-type]
    return queue


def test_a_higher_class_goes_first_while_it_leaves_something() -> None:
    """Realtime with half of the box never waits while a lower batch starts, though both lower classes wait always."""
    jobs = [Job("realtime", at_ns, 5 * MS, 5 * MS) for at_ns in range(0, 2 * SECOND, 10 * MS)]
    jobs += [job for name in ("interactive", "batch") for job in fill(name, [3 * MS], 2 * SECOND)]
    runs = simulate(make_classes(), jobs, until_ns=2 * SECOND)
    assert [run for run in runs if "realtime" in run.waited and run.flow != "realtime"] == []
    assert len([run for run in runs if run.flow == "realtime"]) >= 199


@pytest.mark.parametrize("servers", [1, 4])
def test_classes_above_one_that_waits_leave_it_a_fifth(servers: int) -> None:
    """Of all three, 0.8 * 0.8, 0.8 * 0.2 and 0.2; of the upper two and of the lower two, 0.8 and 0.2."""
    for names, shares in (
        (("realtime", "interactive", "batch"), (0.64, 0.16, 0.2)),
        (("realtime", "batch"), (0.8, 0.2)),
        (("interactive", "batch"), (0.8, 0.2)),
    ):
        jobs = [job for name in names for job in fill(name, [5 * MS], servers * 5 * SECOND)]
        runs = simulate(make_classes(names), jobs, servers=servers, until_ns=5 * SECOND)
        for name, share in zip(names, shares, strict=True):
            assert abs(served(runs, name, 0, 5 * SECOND) / (servers * 5 * SECOND) - share) <= 0.02


@pytest.mark.parametrize("names", [("realtime", "batch"), ("realtime", "interactive", "batch")])
def test_long_batches_on_many_servers_starve_nobody(names: Sequence[str]) -> None:
    """Where much of a second's work on each server is under way and not measured yet, that counts."""
    jobs = [job for name in names for job in fill(name, [500 * MS, 430 * MS, 290 * MS], 8 * 10 * SECOND)]
    runs = simulate(make_classes(names), jobs, servers=8, until_ns=10 * SECOND)
    for name in names:
        assert served(runs, name, 0, 10 * SECOND) >= 0.1 * 8 * 10 * SECOND


@given(st.dictionaries(CLASSES, COSTS, min_size=2), st.integers(1, 4), st.integers(0, SECOND))
@box
def test_no_class_starves(costs: dict[ServiceClass, list[int]], servers: int, at_ns: int) -> None:
    """Who waits, from whenever on, waits for a window and what runs, at most, in each class and each time."""
    first = min(costs, key=["realtime", "interactive", "batch"].index)
    jobs: list[Job] = []
    for name, each in costs.items():
        jobs += fill(name, each, servers * 4 * SECOND, at_ns=0 if name == first else at_ns)
    runs = simulate(make_classes(list(costs)), jobs, servers=servers, until_ns=4 * SECOND)
    most = max(job.cost_ns for job in jobs)
    for name in costs:
        starts = [0 if name == first else at_ns, *(run.start_ns for run in runs if run.flow == name)]
        last = max(run.start_ns for run in runs if name in run.waited)
        waits = [later - earlier for earlier, later in zip(starts, [*starts[1:], last], strict=True)]
        assert max(waits) <= SECOND + 4 * most


def test_a_batch_longer_than_the_window_counts_as_the_window() -> None:
    """After ten seconds of realtime a lower class is left a fifth of a window, and not of ten."""
    jobs = [*fill("realtime", [10 * SECOND], 20 * SECOND), *fill("batch", [5 * MS], 5 * SECOND)]
    runs = simulate(make_classes(("realtime", "batch")), jobs, until_ns=19 * SECOND)
    starts = [run.start_ns for run in runs if run.flow == "realtime"]
    assert starts[0] == 0
    assert 0.2 * SECOND <= starts[1] - 10 * SECOND <= 0.3 * SECOND


def test_a_class_that_did_not_wait_claims_nothing() -> None:
    """Realtime that had the box to itself for a second does not step back for the first batch request that comes."""
    jobs = [*fill("realtime", [5 * MS], 4 * SECOND), Job("batch", SECOND, 5 * MS, 5 * MS)]
    runs = simulate(make_classes(), jobs, until_ns=3 * SECOND)
    (run,) = (run for run in runs if run.flow == "batch")
    assert 0.6 * SECOND <= run.start_ns - SECOND <= SECOND


# -- on a box: minima -------------------------------------------------------------------------------------------------


@given(
    st.floats(0.05, 0.5),
    st.floats(0.05, 0.4),
    st.lists(st.integers(MS, 20 * MS), min_size=1, max_size=3),
    st.sampled_from([0, 1, 3]),
    st.integers(1, 4),
)
@box
def test_a_minimum_is_kept(one: float, two: float, costs: list[int], wrong: float, servers: int) -> None:
    """Two flows of the lowest class and of no weight have their minima of each second, whoever else waits."""
    queue = make({"busy": 100, "busier": 10_000}, service_class="realtime")
    queue.add("one", 0.001, "batch", one)
    queue.add("two", 0.001, "batch", two)
    jobs = fill("one", costs, servers * 3 * SECOND, wrong=[wrong]) + fill("two", [5 * MS], servers * 3 * SECOND)
    jobs += fill("busy", [10 * MS], servers * 3 * SECOND) + fill("busier", [20 * MS], servers * 3 * SECOND)
    runs = simulate(queue, jobs, servers=servers, until_ns=3 * SECOND)
    for name, share, excess in (("one", one, max(0, wrong - 1) * max(costs)), ("two", two, 0)):
        lost = (share + 1 / servers) * excess / SECOND  # what runs counts as estimated
        for start_ns in range(SECOND, 2 * SECOND + 1, SECOND // 4):
            got = served(runs, name, start_ns, start_ns + SECOND) / (servers * SECOND)
            assert got >= 0.9 * share - 0.05 - lost
        assert served(runs, name, SECOND, 3 * SECOND) / (servers * 2 * SECOND) >= share - 0.03 - lost


def test_a_minimum_is_a_minimum_and_no_surcharge() -> None:
    """A flow whose weight is worth more than its minimum gets what its weight is worth."""
    queue = make({"a": 1, "b": 1})
    queue.add("m", 2, min_share=0.3)
    jobs = [job for name in "abm" for job in fill(name, [5 * MS], 5 * SECOND)]
    runs = simulate(queue, jobs, until_ns=5 * SECOND)
    assert abs(served(runs, "m", 0, 5 * SECOND) / (5 * SECOND) - 0.5) <= 0.01


def test_a_minimum_that_was_not_used_is_not_claimed_later() -> None:
    """After seconds of rest a flow has its minimum of the next one, and not that of those before."""
    queue = make({"a": 100})
    queue.add("m", 0.001, min_share=0.3)
    jobs = fill("a", [5 * MS], 10 * SECOND) + fill("m", [5 * MS], 10 * SECOND, at_ns=5 * SECOND)
    runs = simulate(queue, jobs, until_ns=8 * SECOND)
    assert served(runs, "m", 5 * SECOND, 6 * SECOND) <= 0.35 * SECOND
    assert 0.29 <= served(runs, "m", 5 * SECOND, 8 * SECOND) / (3 * SECOND) <= 0.33


def test_the_most_wronged_goes_first() -> None:
    """Of several that lack something, it is who lacks most, also where that one came first."""
    queue = make({"a": 1})
    queue.add("x", 1, "batch", 0.5)
    queue.add("y", 1, "realtime", 0.1)
    queue.wake("a")
    run_one(queue, 100 * MS)
    queue.wake("x")
    queue.wake("y")
    assert [run_one(queue, 40 * MS) for _ in range(4)] == ["x", "x", "y", "x"]


def test_what_runs_counts_for_a_minimum() -> None:
    """Of eight servers that are free at once a flow with a quarter gets two, though nothing of it is measured yet."""
    queue = make({"a": 1})
    queue.add("m", 0.001, min_share=0.25)
    jobs = fill("a", [20 * MS], SECOND) + fill("m", [20 * MS], SECOND)
    runs = simulate(queue, jobs, servers=8, until_ns=0)
    assert sorted(run.flow for run in runs) == ["a"] * 6 + ["m"] * 2


def test_what_a_minimum_gave_is_not_paid_back() -> None:
    """A flow that had three times what its weight is worth has that worth at once when the others are gone."""
    weights = {f"t{number}": 1.0 for number in range(9)}
    queue = make(weights)
    queue.add("m", 1, min_share=0.3)
    jobs = [job for name in weights for job in fill(name, [5 * MS], 6 * SECOND if name == "t0" else 235 * MS)]
    runs = simulate(queue, jobs + fill("m", [5 * MS], 6 * SECOND), until_ns=5 * SECOND)
    assert served(runs, "m", 0, 3 * SECOND) >= 0.29 * 3 * SECOND
    assert served(runs, "m", int(3.1 * SECOND), int(4.1 * SECOND)) >= 0.45 * SECOND


@given(st.lists(st.tuples(WEIGHTS, COSTS), min_size=2, max_size=3), st.floats(0.05, 0.9))
@box
def test_a_minimum_does_not_change_how_others_share(flows: list[tuple[float, list[int]]], share: float) -> None:
    """Between the others the bound of the paper holds as if the flow with the minimum was not there."""
    weights = {f"t{number}": flow[0] for number, flow in enumerate(flows)}
    jobs = [job for name, flow in zip(weights, flows, strict=True) for job in fill(name, flow[1], SECOND)]
    queue = make(weights)
    queue.add("m", 0.001, min_share=share)
    jobs += fill("m", [5 * MS], SECOND)
    runs = simulate(queue, jobs, until_ns=2 * SECOND)
    check_bound(runs, jobs, weights, list(weights))
