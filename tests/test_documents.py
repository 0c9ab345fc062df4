"""The documents say only what something holds."""

from docs.check import find_problems


def test_every_promise_names_what_holds_it_and_every_link_leads_somewhere() -> None:
    """What ``make docs`` checks."""
    assert find_problems() == []
