"""The table of a slot's life: complete, and safe against those who may say anything."""

import pytest

from bedsit.supervisor.transitions import EVENTS, HOSTILE, STATES, TRANSITIONS, InvalidTransition, Story


def test_every_state_meets_every_event() -> None:
    """No combination is undefined."""
    assert set(TRANSITIONS) == {(state, event) for state in STATES for event in EVENTS}


def test_every_state_can_be_reached_and_left() -> None:
    """There is a way into each state but the first, and out of each."""
    moves = {(state, to) for (state, _), to in TRANSITIONS.items() if to in (*STATES, "gone")}

    assert {to for _, to in moves} == {*STATES, "gone"} - {"building"}
    assert {state for state, to in moves if to != state} == set(STATES)


@pytest.mark.parametrize("event", sorted(HOSTILE))
def test_nobody_we_do_not_believe_can_cause_a_bug(event: str) -> None:
    """What a worker or the router may say is never rejected, only heeded or ignored."""
    assert "rejected" not in {TRANSITIONS[state, event] for state in STATES}  # type: ignore[index]


def test_only_dying_slots_go() -> None:
    """A slot is known until its cgroup is empty."""
    assert [state for (state, _), to in TRANSITIONS.items() if to == "gone"] == ["dying"]


def test_an_invalid_transition_tells_the_slots_story() -> None:
    """The error carries what happened to this slot, and not to others."""
    story = Story(length=3)
    for slot in ("s1", "s2", "s1", "s1"):
        story.add(slot, "blank", "taken", "loading")
    failure = InvalidTransition("s1", "serving", "taken", story.of("s1"))

    assert list(story) == ["s2: blank --taken--> loading", *["s1: blank --taken--> loading"] * 2]
    assert str(failure).splitlines() == [
        "slot s1 cannot be 'taken' while it is serving; its story:",
        "  blank --taken--> loading",
        "  blank --taken--> loading",
    ]
