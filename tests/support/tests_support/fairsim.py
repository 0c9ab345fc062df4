"""What a fair queue is held against: a box with servers, an ideal fluid, and the same queueing done slowly.

Everything here is meant to be seen to be right: linear searches, whole histories, fractions. Times are nanoseconds.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count, islice
from typing import Protocol


class Queue(Protocol):
    """What a box asks who is next."""

    def wake(self, name: str) -> None: ...
    def rest(self, name: str) -> None: ...
    def pick(self, now_ns: int, exclude: Collection[str] = ()) -> str | None: ...
    def start(self, name: str, estimate_ns: int, now_ns: int) -> None: ...
    def settle(self, name: str, estimate_ns: int, measured_ns: int, now_ns: int) -> None: ...


@dataclass(frozen=True)
class Job:
    """A batch that comes at *at_ns*, costs a server *cost_ns*, and is expected to cost *estimate_ns*."""

    flow: str
    at_ns: int
    cost_ns: int
    estimate_ns: int


@dataclass(frozen=True)
class Run:
    """A job that was served. *waited* are the flows with something that waited when it started, its own included."""

    job: Job
    start_ns: int
    waited: frozenset[str]

    @property
    def flow(self) -> str:
        return self.job.flow

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.job.cost_ns

    def served_until(self, at_ns: int) -> int:
        """How much of it was served at a time."""
        return max(0, min(at_ns, self.end_ns) - self.start_ns)


def simulate(
    queue: Queue,
    jobs: Iterable[Job],
    *,
    servers: int = 1,
    until_ns: int | None = None,
    workers: Mapping[str, int] | None = None,
    then: Callable[[Run], Job | None] = lambda run: None,
) -> list[Run]:
    """Serve jobs on *servers* that each run one at a time, in the order of their starts.

    No more of a flow than its *workers* run at once. What *then* makes of a finished run comes too, which is how a
    client in a closed loop behaves. Fails where a server idles although something could start, or the other way round.
    """
    limits = workers or {}
    coming = deque(sorted(jobs, key=lambda job: job.at_ns))
    waiting: dict[str, deque[Job]] = {}
    running: list[Run] = []
    runs: list[Run] = []
    now_ns = 0
    while True:
        while len(running) < servers:
            busy = {name for name, most in limits.items() if sum(run.flow == name for run in running) >= most}
            name = queue.pick(now_ns, busy)
            assert (name is not None) == any(line and flow not in busy for flow, line in waiting.items()), "work waits"
            if name is None:
                break
            assert name not in busy
            run = Run(waiting[name][0], now_ns, frozenset(flow for flow, line in waiting.items() if line))
            queue.start(name, waiting[name].popleft().estimate_ns, now_ns)
            if not waiting[name]:
                queue.rest(name)
            running.append(run)
            runs.append(run)
        news = [run.end_ns for run in running] + [job.at_ns for job in islice(coming, 1)]
        if not news or (until_ns is not None and min(news) > until_ns):
            return runs
        now_ns = min(news)
        for run in [run for run in running if run.end_ns == now_ns]:
            running.remove(run)
            queue.settle(run.flow, run.job.estimate_ns, run.job.cost_ns, now_ns)
            following = then(run)
            if following is not None:
                coming = deque(sorted([*coming, following], key=lambda job: job.at_ns))
        while coming and coming[0].at_ns <= now_ns:
            job = coming.popleft()
            waiting.setdefault(job.flow, deque()).append(job)
            queue.wake(job.flow)


def serve_fluid(
    jobs: Sequence[Job], weights: Mapping[str, float], servers: int, until_ns: int, workers: Mapping[str, int]
) -> dict[str, float]:
    """What generalised processor sharing would have served of each flow by *until_ns*: all work is divisible."""
    served = dict.fromkeys(weights, 0.0)
    now = 0.0
    while now < until_ns:
        left = {name: -served[name] for name in weights}
        for job in jobs:
            left[job.flow] += job.cost_ns if job.at_ns <= now else 0
        rates = share_fluid({name: weights[name] for name in weights if left[name] > 1e-3}, servers, workers)
        news = [job.at_ns for job in jobs if job.at_ns > now] + [now + left[name] / rates[name] for name in rates]
        later = min([*news, float(until_ns)])
        for name, rate in rates.items():
            served[name] += rate * (later - now)
        now = later
    return served


def share_fluid(weights: Mapping[str, float], servers: int, workers: Mapping[str, int]) -> dict[str, float]:
    """Servers divided by weight among flows, none of which can use more than its workers; what it leaves is divided."""
    rates: dict[str, float] = {}
    while len(rates) < len(weights):
        rest = {name: weight for name, weight in weights.items() if name not in rates}
        each = (servers - sum(rates.values())) / sum(rest.values())
        full = {name: float(workers[name]) for name in rest if name in workers and each * rest[name] > workers[name]}
        rates |= full or {name: each * weight for name, weight in rest.items()}
    return rates


def measure_jain(values: Collection[float]) -> float:
    """Jain's index of fairness: 1 for equal values, 1/n where one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@dataclass
class _Entry:
    """A return from idleness, when *estimate_ns* is None, or a batch; *cost* is in virtual time."""

    floor: Fraction
    cost: Fraction = Fraction(0)
    scale: Fraction = Fraction(0)
    estimate_ns: int | None = None


@dataclass
class _SlowFlow:
    weight: Fraction
    history: list[_Entry] = field(default_factory=list)
    turn: tuple[bool, int] | None = None

    def tag(self) -> Fraction:
        tag = Fraction(0)
        for entry in self.history:
            tag = max(tag, entry.floor) + entry.cost
        return tag


class SlowQueue:
    """Start-time fair queueing of one class by the book: a tag is computed from all that ever happened to its flow."""

    def __init__(self, slack_ns: int) -> None:
        self.flows: dict[str, _SlowFlow] = {}
        self.virtual = Fraction(0)
        self._slack_ns = slack_ns
        self._turns = count(1)

    def add(self, name: str, weight: float = 1.0) -> None:
        self.flows[name] = _SlowFlow(Fraction(weight))

    def weigh(self, name: str, weight: float) -> None:
        self.flows[name].weight = Fraction(weight)

    def remove(self, name: str) -> None:
        del self.flows[name]

    def wake(self, name: str) -> None:
        flow = self.flows[name]
        if flow.turn is None:
            flow.history.append(_Entry(self.virtual))
            flow.turn = (False, next(self._turns))

    def rest(self, name: str) -> None:
        self.flows[name].turn = None

    def pick(self, now_ns: int, exclude: Collection[str] = ()) -> str | None:
        able = [(flow.tag(), flow.turn, name) for name, flow in self.flows.items() if flow.turn and name not in exclude]
        return min(able)[2] if able else None

    def start(self, name: str, estimate_ns: int, now_ns: int) -> None:
        flow = self.flows[name]
        scale = 1 / flow.weight
        floor = self.virtual - self._slack_ns * scale
        self.virtual = max(self.virtual, flow.tag())
        flow.history.append(_Entry(floor, estimate_ns * scale, scale, estimate_ns))
        flow.turn = (True, next(self._turns))

    def settle(self, name: str, estimate_ns: int, measured_ns: int, now_ns: int) -> None:
        entry = next(entry for entry in self.flows[name].history if entry.estimate_ns == estimate_ns)
        entry.estimate_ns, entry.cost = None, measured_ns * entry.scale
