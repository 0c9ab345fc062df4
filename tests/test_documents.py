"""The documents say only what something holds."""

import pytest
from docs import attacks
from docs.check import find_bare_promises, find_problems

ROWS = [
    {"number": "1", "title": "t", "first": "a", "second": "b", "part": part, "outcome": "c", "test": f"tests/x::{part}"}
    for part in ("attack", "twin", "removed")
]


def test_every_promise_names_what_holds_it_and_every_link_leads_somewhere() -> None:
    """What ``make docs`` checks."""
    assert find_problems() == []


@pytest.mark.parametrize(
    ("number", "wrong"),
    [
        ("goal <= 2; seen 1.2 ms", 0),
        ("p50 RSS, seen 3 GiB", 0),
        ("goal <= 2; seen RATIO", 1),
        ("seen PSS, seen NOISY", 2),
    ],
)
def test_a_placeholder_is_no_number(number: str, wrong: int) -> None:
    """What was to be measured before a release is missed when it was not."""
    row = f"| promise | {number} | `tests/test_documents.py::test_a_placeholder_is_no_number` |"
    assert len(list(find_bare_promises(row))) == wrong


def test_the_table_of_attempts_is_held_to_the_tests() -> None:
    """Another outcome is none of its business; another wall, a new attempt, one that is gone or has no twin are."""

    def count(**changes: str) -> int:
        return len(list(attacks.compare(table, [row | changes for row in ROWS])))

    table = attacks.render(ROWS)
    assert count() == count(outcome="d") == 0
    assert count(first="another") == 2
    assert len(list(attacks.compare(table, [*ROWS, *(row | {"number": "2"} for row in ROWS)]))) == 1
    assert len(list(attacks.compare(table, []))) == 1
    assert len(list(attacks.compare(table, [row for row in ROWS if row["part"] != "twin"]))) == 3
