"""A whole router whose tenants take turns on a core: workers answer, yield and end turns that they have or have not.

As in ``router_turns``, of which this is the rest; the innocent worker runs when its lease page lets it, and not before.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from bedsit.ipc.leasepage import NAME, LeaseView, Turn, split_word
from bedsit.ipc.slot import Note, Word, encode_note
from bedsit.ipc.snapshot import DeviceView
from bedsit.ipc.wire import Kind
from bedsit.supervisor.router.slots import _RESUME
from tests.fuzz.draw import Draw
from tests.fuzz.house import DONTWAIT, House
from tests.fuzz.targets import router_turns
from tests.fuzz.targets.router_turns import Stage

_STEPS: Final = 64
_PATIENCE: Final = 60


class LeaseStage(Stage):
    """The house, with two cores to take turns on. The innocent tenant is at the first."""

    def __init__(self, house: House) -> None:
        self.devices = [DeviceView("core", 1, 1.0, 10.0), DeviceView("other", 1, 1.0, 10.0)]
        self.turns_on = "core"
        self._ahead: list[int] = []  # what the innocent worker has been sent, and may not run yet
        super().__init__(house)
        self._page = LeaseView.open(str(house.folder / "slots" / "s1" / NAME))

    def publish(self) -> None:
        on = {"acme": self.turns_on, "beta": "core"}
        tenants = [replace(tenant, turns_on=on[tenant.name]) for tenant in self.tenants]
        self.house.apply(tenants, list(self.slots.values()), 0, self.devices)
        self.house.turn()

    def call_innocently(self) -> None:
        session = self.innocent
        assert session is not None
        self.ask_innocently()
        for _ in range(_PATIENCE):
            self.house.turn()
            self._ahead += [ident for kind, ident in self.read_worker("s1", 10) if kind == Kind.REQUEST]
            if self._ahead and split_word(self._page.words[0])[0] != Turn.WAIT:
                self.workers["s1"].send(router_turns._answer(self._ahead.pop(0), b"beta"), DONTWAIT)
            heard = session.hear()
            if heard:
                assert [packet[-4:] for packet in heard] == [b"beta"]
                return
            self._end_turns()
        raise AssertionError("the innocent one waits")

    def _end_turns(self) -> None:
        """As if the others had had their time."""
        for gate in self.house.router._dispatch.gates:
            for batch in gate._running:
                batch.pressed_ns = batch.pressed_ns and 1
        self.house.pass_time(0.3)

    def close(self) -> None:
        del self._page
        super().close()


def _say(stage: LeaseStage, draw: Draw) -> None:
    """Its turn is over, or another's, once or often."""
    name = "s0" if "s0" in stage.workers else "s2"
    slot = stage.house.router.slots.get(name)
    if slot is not None:
        epoch = max(0, slot.page.epoch + draw.pick((0, 0, 0, 0, 1, -1, 1 << 40)))
        note = encode_note(Note(draw.pick((Word.YIELD, Word.YIELD, Word.END)), draw.below(2), epoch))
        for _ in range(draw.pick((1, 1, 1, 2, 200))):
            router_turns._say(stage, draw, note)


def _move(stage: LeaseStage, draw: Draw) -> None:
    """The hostile tenant takes turns elsewhere, or nowhere; devices have other terms, or are gone for a moment."""
    stage.turns_on = draw.pick(("core", "core", "core", "other", "", "nowhere"))
    turn_ms, parallel = draw.pick((1e-6, 1.0, 1e6)), draw.pick((1, 1, 2))
    cores = [DeviceView(name, parallel, turn_ms, 1e6, strict=draw.flag()) for name in ("core", "other")]
    if draw.flag():
        stage.devices = []
        stage.publish()
    stage.devices = cores
    stage.publish()


def _end_turns(stage: LeaseStage, draw: Draw) -> None:
    stage._end_turns()


_ACTS: Final[Sequence[Callable[[LeaseStage, Draw], None]]] = (
    *(*router_turns._ACTS, _say, _say, _say, _move, _end_turns),
    *(router_turns._read, router_turns._send, router_turns._call),
)


def seeds() -> Iterator[bytes]:
    """Honest traffic of both tenants, then each act in the middle of it."""
    opened = bytes([0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 16, 0, 9, 1, 0, 3, 18])
    yield opened
    for act in range(len(_ACTS)):
        for more in ((0, 0, 0, 0), (1, 0, 2, 1), (5, 2, 4, 1)):
            yield opened + bytes([1, 0, 0, 0, 2, 0, 1, 0, 0, 9, 1, 3, act, *more, 16, 3, 19, 0, 0, 0, 0, 0, 18])
    # A worker that reads nothing and says without end that its turn is over.
    yield bytes([0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 16, 3, 19, 0, 0, 0, 4, *([15, 1, 16, 0] * 20)])


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """The innocent tenant has its turn at any time, nothing piles up, and in the end everything is given back."""
    draw = Draw(data)
    before = os.listdir("/proc/self/fd")
    with House() as house:
        stage = LeaseStage(house)
        try:
            for _ in range(_STEPS):
                if not draw.left:
                    break
                draw.pick(_ACTS)(stage, draw)
                for slot in house.router.slots.values():
                    notes = sum(1 for packet, _, _ in slot._unsent if packet is _RESUME)
                    assert notes <= 1 + len(slot._unsent) - notes, "a worker is woken more often than it is told things"
            house.settle()
            stage.leave()
            stage.call_innocently()
        finally:
            stage.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
