"""Turns on a device: workers that the test plays see what they are sent, and what their lease pages say when."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.leasepage import NAME, LeaseView, Turn, split_word
from bedsit.ipc.slot import NOTE_BYTES, Note, Word, decode_note, encode_note
from bedsit.ipc.snapshot import DeviceView
from bedsit.ipc.wire import Kind, read_envelope
from tests.supervisor.router.conftest import HostileWorker

TURN_MS = 100.0
HARD_MS = 600.0


class Player:
    """A worker played by the test, the session of its tenant's client, and its lease page as its user may read it."""

    def __init__(self, plane: Any, name: str) -> None:
        self.plane, self.name = plane, name
        self.worker, self.session = plane.add_pair(name, "fast")
        self.page = LeaseView.open(str(plane.run_dir / "slots" / self.worker.slot / NAME))

    def come_back(self) -> None:
        """Meet another router: its worker first, then its client."""
        slot = self.worker.slot
        self.worker = HostileWorker(slot, self.plane.run_dir / "slots" / slot)
        self.session = self.plane.knock(self.name)
        self.plane.hostile.append(self.worker)

    def serve_until(self, rid: int, other: "Player", first: int) -> None:
        """Answer what it has as *rid*, and one request after the other of its client, until it is the other's turn."""
        for ident in range(first, first + 200):
            self.ask(ident)
            time.sleep(0.01)
            self.answer(rid)
            if other.turn != Turn.WAIT:
                return
            rid = self.next_rid()
        raise AssertionError("the other one gets no turn")

    def next_rid(self) -> int:
        """The next request that its worker is sent; notes before it are taken."""
        while len(packet := self.worker.fast.recv()) == NOTE_BYTES:
            pass
        return read_envelope(packet).id

    @property
    def turn(self) -> Turn:
        """What its page says."""
        return split_word(self.page.words[0])[0]

    @property
    def epoch(self) -> int:
        """The last turn that it had or has."""
        return split_word(self.page.words[0])[1]

    def ask(self, *idents: int) -> None:
        """Its client asks."""
        for ident in idents:
            self.session.lane.send(self.session.request(ident))

    def wait_turn(self, turn: Turn, after: int = -1) -> None:
        """Until its page says so, in an epoch after that one."""
        self.plane.wait_until(lambda: self.turn == turn and self.epoch > after)

    def hear_resume(self) -> None:
        """The next thing that it is told is to look at its page."""
        data = self.worker.fast.recv()
        assert len(data) == NOTE_BYTES
        assert decode_note(data).word == Word.RESUME

    def give_up(self, epoch: int | None = None, word: Word = Word.YIELD) -> None:
        """Say that its turn is over and its batch is not, or with END that it has run."""
        note = Note(word, 0, self.epoch if epoch is None else epoch)
        self.worker.link.send(encode_note(note))

    def wait_over(self) -> None:
        """Until the page says that its turn is over."""
        self.plane.wait_until(lambda: self.turn == Turn.WAIT or time.monotonic_ns() >= self.page.words[1])

    def answer(self, ident: int) -> None:
        """Its worker answers what it was sent as *ident*, and its client gets that."""
        self.worker.respond(ident)
        assert self.session.answer()[1:] == (Kind.RESPONSE, "")


@pytest.fixture
def shared(plane: Any) -> Iterator[dict[str, Player]]:
    """Two tenants that take turns on one device."""
    plane.devices = [DeviceView("core", 1, TURN_MS, HARD_MS)]
    for name in ("acme", "beta"):
        plane.change(name, turns_on="core")
    players = {name: Player(plane, name) for name in ("acme", "beta")}
    yield players
    players.clear()  # and with them the mapped pages


def _begin_both(shared: dict[str, Player]) -> tuple[Player, int, Player, int]:
    """One has a turn, and the other's batch waits at its worker for the next."""
    acme, beta = shared.values()
    acme.ask(1)
    held = acme.worker.next_request().id
    beta.ask(1)
    ahead = beta.worker.next_request().id
    return acme, held, beta, ahead


def test_who_is_alone_has_no_turns(shared: dict[str, Player]) -> None:
    """It runs whatever it is sent, and is told nothing beside its requests."""
    acme = shared["acme"]
    for ident in range(1, 6):
        acme.ask(ident)
        rid = acme.worker.next_request().id
        assert (acme.turn, acme.epoch) == (Turn.FREE, 0)
        acme.answer(rid)
    assert acme.worker.is_idle()


def test_the_next_batch_is_there_before_its_turn(shared: dict[str, Player]) -> None:
    """It is sent ahead, and its page says that it has to wait; the answer before it begins its turn."""
    acme, held, beta, ahead = _begin_both(shared)

    assert (acme.turn, beta.turn) == (Turn.HELD, Turn.WAIT)
    assert acme.page.words[1] <= time.monotonic_ns() + TURN_MS * 1e6
    acme.answer(held)
    beta.hear_resume()

    assert (acme.turn, beta.turn) == (Turn.WAIT, Turn.FREE)  # nobody waits for its end
    beta.answer(ahead)
    assert acme.worker.is_idle()
    assert beta.worker.is_idle()


def test_a_turn_that_is_over_is_given_back(shared: dict[str, Player]) -> None:
    """Who yields has its next turn when the other has had as much, as often as it takes; each is one epoch more."""
    acme, held, beta, ahead = _begin_both(shared)
    for first in (2, 1002):
        epoch = acme.epoch
        acme.wait_over()
        acme.give_up()
        beta.hear_resume()
        beta.serve_until(ahead, acme, first)
        acme.hear_resume()
        assert (acme.turn, acme.epoch) == (Turn.HELD, epoch + 1)
        ahead = beta.next_rid()
    acme.answer(held)
    beta.hear_resume()
    beta.answer(ahead)


def test_who_yields_is_next_again_if_it_is_its_turn(plane: Any, shared: dict[str, Player]) -> None:
    """Turns are shared by weight, also between calls that yield: who has nine tenths goes on after itself."""
    plane.change("acme", weight=900)
    acme, held, beta, ahead = _begin_both(shared)
    acme.wait_over()
    acme.give_up()
    beta.hear_resume()  # who comes anew is next
    time.sleep(TURN_MS / 1e3)
    beta.answer(ahead)
    acme.hear_resume()
    beta.ask(2)
    ahead = beta.next_rid()
    for _ in range(4):
        epoch = acme.epoch
        acme.wait_over()
        acme.give_up()
        acme.wait_turn(Turn.HELD, epoch)
        assert beta.turn == Turn.WAIT
    acme.answer(held)
    beta.hear_resume()
    beta.answer(ahead)


def test_the_next_turn_begins_before_the_answers_of_the_last_one_are_there(
    plane: Any, shared: dict[str, Player]
) -> None:
    """A worker says that its batch has run; what it takes to answer is nobody's turn. Twice is once."""
    acme, held, beta, ahead = _begin_both(shared)
    acme.give_up(word=Word.END)
    beta.hear_resume()
    assert acme.turn == Turn.WAIT
    acme.give_up(word=Word.END)
    assert plane.hear("misbehaved")["slot"] == acme.worker.slot
    acme.hear_resume()
    acme.answer(held)
    beta.answer(ahead)
    acme.ask(2)
    acme.answer(acme.next_rid())


def test_who_says_that_it_has_run_and_does_not_answer_is_found_hanging(plane: Any, shared: dict[str, Player]) -> None:
    """What it keeps back counts against the time that a call may take, and holds up nobody."""
    plane.change("acme", run_max_s=0.5)
    acme, _, beta, ahead = _begin_both(shared)
    acme.give_up(word=Word.END)
    beta.hear_resume()
    beta.answer(ahead)
    assert plane.hear("hung")["slot"] == acme.worker.slot


def test_what_waits_for_its_turn_is_not_taken_to_hang(plane: Any, shared: dict[str, Player]) -> None:
    """However long: the time that a call may take is that of its turns."""
    plane.change("beta", run_max_s=0.2)
    acme, held, beta, ahead = _begin_both(shared)
    time.sleep(0.4)
    acme.answer(held)
    beta.hear_resume()
    beta.answer(ahead)
    assert [message for message in plane.heard if message["op"] == "hung"] == []


def test_who_has_no_turn_gives_none_back(plane: Any, shared: dict[str, Player]) -> None:
    """Of an epoch long gone, before its time, twice, or while another has it: counted, and nobody's turn changes."""
    acme, held, beta, ahead = _begin_both(shared)
    for player, epoch in ((acme, acme.epoch - 1), (beta, None), (acme, acme.epoch + 7), (acme, None)):
        player.give_up(epoch)
    plane.wait_until(lambda: plane.hear("misbehaved")["count"] == 2)
    assert (acme.turn, beta.turn) == (Turn.HELD, Turn.WAIT)

    acme.wait_over()
    acme.give_up()
    acme.give_up()
    beta.wait_turn(Turn.HELD)

    assert acme.turn == Turn.WAIT
    beta.worker.respond(ahead)
    acme.wait_turn(Turn.FREE)
    acme.answer(held)


def test_who_keeps_a_turn_loses_it_and_its_slot_is_named(plane: Any, shared: dict[str, Player]) -> None:
    """The other is served before the slot is gone; the tenant gets nothing more until then, and goes on after it."""
    acme, _, beta, ahead = _begin_both(shared)
    acme.ask(2)
    began = time.monotonic()
    beta.wait_turn(Turn.HELD)

    assert HARD_MS / 1e3 - 0.05 <= time.monotonic() - began < 2 * HARD_MS / 1e3
    told = plane.hear("overran")
    assert (told["slot"], told["on"], told["ran"]) == (acme.worker.slot, "core", [1, 1])
    assert told["after_s"] >= HARD_MS / 1e3
    beta.hear_resume()
    beta.answer(ahead)
    for ident in range(2, 5):
        beta.ask(ident)
        beta.answer(beta.worker.next_request().id)
    assert plane.counts("acme")["in_flight"] == 1

    plane.remove_slot(acme.worker.slot)

    assert acme.session.answer()[1:] == (Kind.ERROR, "model.timeout")
    fresh = plane.add_hostile("acme")
    fresh.take_arena()
    fresh.respond(fresh.next_request().id)
    assert acme.session.answer()[1:] == (Kind.RESPONSE, "")


def test_what_was_kept_is_charged(plane: Any, shared: dict[str, Player]) -> None:
    """Who kept a turn for long pays for all of it: the other has as much before it is its turn again."""
    acme, held, beta, ahead = _begin_both(shared)
    time.sleep(0.2)
    acme.ask(2)
    acme.answer(held)
    began = time.monotonic()
    beta.serve_until(ahead, acme, 2)

    assert time.monotonic() - began >= 0.15


def test_a_realtime_request_ends_a_turn_of_others(plane: Any, shared: dict[str, Player]) -> None:
    """A worker of a lower class is asked to yield at once, and the realtime one is next, whoever was to be."""
    plane.change("beta", service_class="realtime")
    acme, held, beta, ahead = _begin_both(shared)

    assert acme.page.words[1] <= time.monotonic_ns()
    acme.give_up()
    beta.hear_resume()
    beta.answer(ahead)
    acme.hear_resume()
    acme.answer(held)


@pytest.mark.parametrize("who", ["holder", "next"])
def test_a_worker_that_hangs_up_keeps_no_turn(plane: Any, shared: dict[str, Player], who: str) -> None:
    """Whether it had one or was to get the next one; its request is tried again by its next slot."""
    acme, held, beta, ahead = _begin_both(shared)
    dead, other, rid = (acme, beta, ahead) if who == "holder" else (beta, acme, held)
    dead.worker.link.close()
    assert plane.hear("lost")["slot"] == dead.worker.slot
    other.wait_turn(Turn.FREE if who == "holder" else Turn.HELD)
    if who == "holder":
        other.hear_resume()
    other.answer(rid)
    other.ask(2)
    other.answer(other.worker.next_request().id)
    plane.remove_slot(dead.worker.slot)
    fresh = plane.add_hostile(dead.name)
    fresh.take_arena()
    fresh.respond(fresh.next_request().id)
    assert dead.session.answer()[1:] == (Kind.RESPONSE, "")


def test_devices_come_and_go_while_batches_wait(plane: Any, shared: dict[str, Player]) -> None:
    """A tenant that takes no turns any more runs at once what it was sent ahead; one that takes turns again waits."""
    acme, held, beta, ahead = _begin_both(shared)
    plane.change("beta", turns_on="")
    beta.hear_resume()
    assert beta.turn == Turn.FREE
    beta.answer(ahead)
    plane.change("beta", turns_on="core")
    beta.ask(2)
    ahead = beta.worker.next_request().id
    assert beta.turn == Turn.WAIT
    plane.devices = []
    plane.publish()
    assert (acme.turn, beta.turn) == (Turn.FREE, Turn.FREE)
    acme.hear_resume()
    beta.hear_resume()
    acme.answer(held)
    beta.answer(ahead)
    for ident in (5, 6):  # and nothing holds them up afterwards
        for player in shared.values():
            player.ask(ident)
            player.answer(player.worker.next_request().id)


def test_the_next_router_goes_on_counting(plane: Any, shared: dict[str, Player]) -> None:
    """A turn of the router before is over when its worker is back, or when its time is; nobody's epoch comes again."""
    acme, _, beta, _ = _begin_both(shared)
    epoch = acme.epoch
    assert acme.turn == Turn.HELD
    plane.stop_router(signal.SIGKILL)
    plane.start_router()
    assert acme.turn == Turn.WAIT  # nobody wants what it is at
    beta.come_back()
    began = time.monotonic()
    beta.ask(1)
    rid = beta.next_rid()
    assert time.monotonic() - began > HARD_MS / 2e3
    beta.answer(rid)
    acme.come_back()
    acme.ask(1)
    held = acme.next_rid()
    beta.ask(2)
    beta.next_rid()
    assert acme.epoch > epoch
    acme.answer(held)


def test_the_next_router_waits_for_who_ran_alone(plane: Any, shared: dict[str, Player]) -> None:
    """A page that says FREE may be that of a worker that is at something; the others wait for it as for a turn."""
    acme, beta = shared.values()
    acme.ask(1)
    acme.worker.next_request()
    assert acme.turn == Turn.FREE
    plane.stop_router(signal.SIGKILL)
    plane.start_router()
    assert acme.turn == Turn.WAIT
    beta.come_back()
    began = time.monotonic()
    beta.ask(1)
    beta.answer(beta.next_rid())
    assert time.monotonic() - began > HARD_MS / 2e3


def test_in_turns_all_goes_one_way(plane: Any) -> None:
    """On the connection, whatever the client's lane is: what is sent behind a batch must not be at its worker first."""
    worker, session = plane.add_pair("acme", "zmq")
    session.lane.send(session.request(3))
    worker.respond(worker.next_request().id)
    assert session.answer()[0] == 3
    plane.devices = [DeviceView("core", 1, TURN_MS, HARD_MS)]
    plane.change("acme", turns_on="core")
    session.lane.send(session.request(4))
    worker.lane = worker.fast
    worker.respond(worker.next_request().id)
    assert session.answer()[0] == 4


def test_the_page_is_its_owners_to_write(plane: Any, shared: dict[str, Player]) -> None:
    """The worker's user may read it; the folder keeps everybody else out."""
    path = Path(plane.run_dir / "slots" / shared["acme"].worker.slot / NAME)
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_uid != plane.slots[shared["acme"].worker.slot].uid
