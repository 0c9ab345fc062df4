"""Whose batch is next where not everybody's can run: start-time fair queueing (SFQ) of tenants by measured cost.

Pure: no I/O, the clock is passed in. A flow is a tenant. A batch with start tag S finishes at F = S + cost / weight,
and its flow's next one starts at S = max(V, F). The smallest S goes first, and V is the S of what went last.

Guarantees (held by tests/supervisor/router/test_fairqueue.py, against a slow simulation):
  - between flows i and j of one class that wait all the time, service divided by weight differs by at most
    Lmax_i / w_i + Lmax_j / w_j, where L is the cost of a batch (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM
    1996, theorem 1). With several servers that holds for what was started, where costs were estimated right;
  - who was idle is next when it comes back, and has no claim on what it left to others. Who waited but could not start
    (``exclude``) has one on a tenth of a window at most: a worker that was away for a minute is not owed a minute;
  - a wrong estimate matters until the batch is settled: then tags are as if its cost had been known at its start. On
    several servers a flow that is estimated far too high may run but one batch at a time, and nobody gains by errors;
  - realtime goes before interactive before batch, but while a class waits those above it together take at most ``cap``
    of all cost in a window (by default 0.8 of a second's), so that it waits for about a window, however busy they are;
  - before all that goes a flow that waits and had less than its ``min_share`` of that window, the most wronged first.
    Such a batch moves no tags: it is neither paid back later, nor does it change anybody else's turn;
  - while a flow waits that is not excluded, ``pick`` names one.
Assumes: what starts is settled, once. A batch measured as 0 is free: nobody gets past a flow that has only such. What
is promised to flows leaves the others something. A clock that steps back stands still.

Why not WFQ: it needs costs in advance, and the finish times of an ideal fluid server. Why not DRR: it needs costs in
advance, and a short batch waits for a round of everybody's long ones. Why not lottery: fair in the long run, and what
tenants look at is p99. Why not float tags: they round, and what an absurd estimate rounds away no refund brings back.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from bedsit.ipc.snapshot import ServiceClass

_CLASSES: Final[tuple[ServiceClass, ...]] = ("realtime", "interactive", "batch")
_UNIT: Final = 1 << 40  # of virtual time for a nanosecond at weight 1: fine enough to be divided by any sane weight
_BUCKETS: Final = 10
_PROMISED_MAX: Final = 1 + 1e-6  # parts like 0.1 do not add up exactly

#: Start tag, whether it was served since it came, order of arrival, name. Among equal tags newcomers are first: where
#: costs are equal, equal tags are the rule, and a lone request is to wait for one batch and not for a round.
_Place = tuple[int, bool, int, str]


@dataclass(frozen=True)
class FlowStatistics:
    """A flow now. Tags are nanoseconds of cost at weight 1; *start_tag* is what its next batch would have."""

    served_ns: int
    start_tag: int
    finish_tag: int
    waiting: bool
    running: int


class _Window:
    """The cost of the last ten ticks, in ten buckets whatever is charged."""

    __slots__ = ("_buckets", "_last", "_sum")

    def __init__(self) -> None:
        self._buckets, self._sum, self._last = [0] * _BUCKETS, 0, 0

    def add(self, tick: int, cost_ns: int) -> None:
        self._sum = self.read(tick) + cost_ns
        self._buckets[self._last % _BUCKETS] += cost_ns

    def read(self, tick: int) -> int:
        if tick > self._last:
            for passed in range(max(self._last, tick - _BUCKETS) + 1, tick + 1):
                self._sum -= self._buckets[passed % _BUCKETS]
                self._buckets[passed % _BUCKETS] = 0
            self._last = tick
        return self._sum


@dataclass(slots=True)
class _Step:
    """What a batch does to its flow's tag: F = max(F, floor) + cost. Without *estimate_ns* the cost is final."""

    floor: int
    cost: int = 0
    scale: int = 0
    estimate_ns: int | None = None


@dataclass(slots=True)
class _Flow:
    name: str
    scale: int  # virtual time for a nanosecond
    level: int
    min_share: float
    steps: list[_Step] = field(default_factory=lambda: [_Step(0)])  # final ones are never neighbours; the first is one
    running: int = 0
    pending_ns: int = 0  # what runs, as it was estimated
    served_ns: int = 0
    taken: _Window = field(default_factory=_Window)
    place: _Place | None = None

    def finish_tag(self) -> int:
        tag = self.steps[0].floor
        for step in self.steps:
            tag = max(tag, step.floor) + step.cost
        return tag

    def append(self, step: _Step) -> None:
        """One more step. Two final ones are one: max(max(F, a) + c, b) + d = max(F, max(a, b - c)) + c + d."""
        last = self.steps[-1]
        if step.estimate_ns is None and last.estimate_ns is None:
            last.floor, last.cost = max(last.floor, step.floor - last.cost), last.cost + step.cost
        else:
            self.steps.append(step)

    def lacks_ns(self, all_ns: int, tick: int) -> float:
        """How much less than its minimum it had. With what runs, or it had less until the first of many is settled."""
        return self.min_share * all_ns - self.taken.read(tick) - self.pending_ns

    def settle(self, index: int, measured_ns: int) -> None:
        """Make a step final, and one with its neighbours that are."""
        tail = self.steps[index:]
        del self.steps[index:]
        tail[0].estimate_ns, tail[0].cost = None, measured_ns * tail[0].scale
        for step in tail:
            self.append(step)


@dataclass(slots=True)
class _Class:
    virtual: int = 0
    waiting: list[_Place] = field(default_factory=list)
    pending_ns: int = 0
    taken: _Window = field(default_factory=_Window)
    #: What each class took while this one waited, of those above it.
    passed: tuple[_Window, ...] = field(default_factory=lambda: tuple(_Window() for _ in _CLASSES))


class FairQueue:
    """What flows wait, run and took. At most *cap* of a window goes to the classes above one that waits.

    Unknown names raise KeyError, what makes no sense ValueError; neither changes anything. Nothing blocks.
    """

    def __init__(self, cap: float = 0.8, window_ns: int = 1_000_000_000) -> None:
        if not 0 <= cap < 1 or window_ns < _BUCKETS:
            raise ValueError(f"a cap is at least 0 and below 1, of a window of some time; not {cap} of {window_ns} ns")
        self._cap = cap
        self._window_ns = window_ns
        self._tick_ns = window_ns // _BUCKETS
        self._flows: dict[str, _Flow] = {}
        self._promised: dict[str, _Flow] = {}  # those that wait and have a minimum
        self._classes = tuple(_Class() for _ in _CLASSES)
        self._arrivals = 0

    def add(
        self, name: str, weight: float = 1.0, service_class: ServiceClass = "interactive", min_share: float = 0.0
    ) -> None:
        """A new flow, which rests. The *min_share* of all flows together is at most 1, a part of all cost."""
        if name in self._flows:
            raise ValueError(f"there is a flow {name!r} already")
        self._flows[name] = _Flow(name, *self._read_terms(name, weight, service_class, min_share), min_share)

    def update(self, name: str, weight: float, service_class: ServiceClass, min_share: float) -> None:
        """Other terms from now on. What runs is charged at the weight that it started with."""
        flow = self._flows[name]
        scale, level = self._read_terms(name, weight, service_class, min_share)
        place = flow.place
        self.rest(name)
        if level != flow.level:  # as far ahead of the one virtual time as it was of the other
            ahead = self._classes[level].virtual - self._classes[flow.level].virtual
            for step in flow.steps:
                step.floor += ahead
            self._classes[flow.level].pending_ns -= flow.pending_ns
            self._classes[level].pending_ns += flow.pending_ns
        flow.scale, flow.level, flow.min_share = scale, level, min_share
        if place is not None:
            self._enter(flow, place[1:3])

    def remove(self, name: str) -> None:
        """Forget a flow, whatever it does. What it took was taken; what runs of it is not settled any more."""
        self.rest(name)
        flow = self._flows.pop(name)
        self._classes[flow.level].pending_ns -= flow.pending_ns

    def wake(self, name: str) -> None:
        """The flow has work that waits, as it may have had before."""
        flow = self._flows[name]
        if flow.place is None:
            flow.append(_Step(self._classes[flow.level].virtual))
            self._arrivals += 1
            self._enter(flow, (False, self._arrivals))

    def rest(self, name: str) -> None:
        """The flow has nothing that waits, as it may have had nothing before. What runs of it runs on."""
        flow = self._flows[name]
        if flow.place is not None:
            waiting = self._classes[flow.level].waiting
            del waiting[bisect_left(waiting, flow.place)]
            flow.place = None
            self._promised.pop(name, None)

    def pick(self, now_ns: int, exclude: Container[str] = ()) -> str | None:
        """The flow to start next of those that wait and are not in *exclude*. Asking changes nothing."""
        tick = now_ns // self._tick_ns
        if self._promised and (wronged := self._find_wronged(tick, exclude)) is not None:
            return wronged
        first = []
        for level, each in enumerate(self._classes):
            for place in each.waiting:
                if place[-1] not in exclude:
                    first.append((level, place[-1]))
                    break
        for index, (level, name) in enumerate(first, 1):
            if self._may_pass(level, [lower for lower, _ in first[index:]], tick):
                return name
        return None

    def start(self, name: str, estimate_ns: int, now_ns: int) -> None:
        """A batch of a flow that waits starts and is charged its estimate. The flow waits on until it rests.

        It need not be the one that was picked.
        """
        flow = self._flows[name]
        _check_cost(estimate_ns)
        if flow.place is None:
            raise ValueError(f"nothing of flow {name!r} waits")
        each = self._classes[flow.level]
        tick = now_ns // self._tick_ns
        if flow.min_share and flow.lacks_ns(self._taken_ns(tick), tick) > 0:
            step = _Step(flow.steps[0].floor, 0, 0, estimate_ns)  # one that changes no tag
        else:
            step = _Step(each.virtual - self._tick_ns * flow.scale, estimate_ns * flow.scale, flow.scale, estimate_ns)
            each.virtual = max(each.virtual, flow.place[0])
        flow.append(step)
        flow.running += 1
        self._expect(flow, estimate_ns, 1)
        self.rest(name)
        self._arrivals += 1
        self._enter(flow, (True, self._arrivals))

    def settle(self, name: str, estimate_ns: int, measured_ns: int, now_ns: int) -> None:
        """A batch that was started with this estimate is done, and cost *measured_ns*."""
        flow = self._flows[name]
        _check_cost(measured_ns)
        index = next((i for i, step in enumerate(flow.steps) if step.estimate_ns == estimate_ns), 0)
        if not index:  # the first step is no batch that runs
            raise ValueError(f"no batch of flow {name!r} runs that was to cost {estimate_ns} ns")
        flow.settle(index, measured_ns)
        flow.running -= 1
        flow.served_ns += measured_ns
        self._expect(flow, estimate_ns, -1)
        self._charge(flow, measured_ns, now_ns // self._tick_ns)
        if flow.place is not None and flow.place[0] != flow.finish_tag():
            turn = flow.place[1:3]
            self.rest(name)
            self._enter(flow, turn)

    def statistics(self) -> dict[str, FlowStatistics]:
        """Every flow now, by name."""
        found = {}
        for name, flow in self._flows.items():
            waiting, finish, virtual = flow.place is not None, flow.finish_tag(), self._classes[flow.level].virtual
            start = max(finish, virtual - waiting * self._tick_ns * flow.scale)
            found[name] = FlowStatistics(flow.served_ns, start // _UNIT, finish // _UNIT, waiting, flow.running)
        return found

    def _enter(self, flow: _Flow, turn: tuple[bool, int]) -> None:
        flow.place = (flow.finish_tag(), *turn, flow.name)
        insort(self._classes[flow.level].waiting, flow.place)
        if flow.min_share:
            self._promised[flow.name] = flow

    # A batch longer than the window counts as the window: more cannot have been within it.

    def _expect(self, flow: _Flow, estimate_ns: int, sign: int) -> None:
        cost_ns = sign * min(estimate_ns, self._window_ns)
        flow.pending_ns += cost_ns
        self._classes[flow.level].pending_ns += cost_ns

    def _charge(self, flow: _Flow, measured_ns: int, tick: int) -> None:
        cost_ns = min(measured_ns, self._window_ns)
        self._classes[flow.level].taken.add(tick, cost_ns)
        for lower in self._classes[flow.level + 1 :]:
            if lower.waiting:
                lower.passed[flow.level].add(tick, cost_ns)
        if flow.min_share:
            flow.taken.add(tick, cost_ns)

    def _find_wronged(self, tick: int, exclude: Container[str]) -> str | None:
        most, found, all_ns = 0.0, None, self._taken_ns(tick)
        for name, flow in self._promised.items():
            lacks_ns = flow.lacks_ns(all_ns, tick)
            if lacks_ns > most and name not in exclude:
                most, found = lacks_ns, name
        return found

    def _may_pass(self, level: int, waiting: Sequence[int], tick: int) -> bool:
        """Whether a class may go before lower ones that wait.

        Each of these is left its part of what those below it are left. So it is interactive that makes room for batch
        as long as realtime keeps within both parts.
        """
        allowed_ns: float = self._taken_ns(tick) if waiting else 0
        for lower in waiting:
            allowed_ns *= self._cap
            passed_ns = sum(window.read(tick) for window in self._classes[lower].passed[: level + 1])
            if passed_ns + self._pending_ns(level + 1) > allowed_ns:
                return False
        return True

    def _taken_ns(self, tick: int) -> int:
        return sum(each.taken.read(tick) for each in self._classes) + self._pending_ns(len(_CLASSES))

    def _pending_ns(self, levels: int) -> int:
        return sum(each.pending_ns for each in self._classes[:levels])

    def _read_terms(self, name: str, weight: float, service_class: ServiceClass, min_share: float) -> tuple[int, int]:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"a weight is finite and above 0, not {weight}")
        if service_class not in _CLASSES:
            raise ValueError(f"a class is one of {', '.join(_CLASSES)}, not {service_class!r}")
        others = math.fsum(flow.min_share for flow in self._flows.values() if flow.name != name) if min_share else 0.0
        if not (0 <= min_share <= 1 and others + min_share <= _PROMISED_MAX):
            raise ValueError(f"a minimum of {min_share} is not within 0 and 1, where others are promised {others:g}")
        return max(1, int(_UNIT / Fraction(weight))), _CLASSES.index(service_class)


def _check_cost(cost_ns: int) -> None:
    if not 0 <= cost_ns < math.inf:
        raise ValueError(f"a cost is finite and at least 0 ns, not {cost_ns}")
