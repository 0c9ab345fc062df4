"""The marks by which a test counts as a part of a hostile attempt, also outside tests/security."""

import functools
from typing import Final, Literal

import pytest

Part = Literal["attack", "twin", "removed"]


def attempt(
    number: str, title: str, *, first: str, second: str = "", part: Part, outcome: str = ""
) -> pytest.MarkDecorator:
    """Count a test as *part* of an attempt; *outcome* is what the table says came of it."""
    return pytest.mark.attack(number=number, title=title, first=first, second=second or "-", part=part, outcome=outcome)


# Attempts whose parts lie in more than one file.
INHERITANCE: Final = functools.partial(
    attempt, "26", "read the environment of whoever started the box", first="the zygote starts with an empty one"
)
FOREIGN_USER: Final = functools.partial(
    attempt, "36.2", "speak to the router as another user", first="SO_PEERCRED", second="folder of the slot's user"
)
RACE: Final = functools.partial(
    attempt, "46", "change a header between check and use", first="headers are copies; the router maps no payload"
)
DESCRIPTORS: Final = functools.partial(
    attempt, "47", "hand descriptors to the router", first="SO_PASSRIGHTS off; no room for any"
)
LANE: Final = functools.partial(
    attempt, "48", "flood and confuse the router's lane", first="a bound for each packet, a budget for each turn"
)
ENDLESS: Final = functools.partial(
    attempt, "48.2", "a message that never ends, on a lane", first="the router cuts that lane", second="RLIMIT_DATA"
)
MSGPACK: Final = functools.partial(attempt, "49", "bombs and lies in msgpack", first="strict decoder with limits")
SHAPES: Final = functools.partial(
    attempt, "50", "a tensor that is larger than its bytes", first="arithmetic before the map", second="numpy"
)
PICKLE: Final = functools.partial(
    attempt, "51", "a pickle in an answer or in a model", first="no trusted process unpickles", second="own root"
)
OUTPUT: Final = functools.partial(
    attempt, "52", "flood the log, forge lines in it", first="bounded files, printable text", second="rate limit"
)
PATIENCE: Final = functools.partial(
    attempt, "53", "never answer, never read, never load", first="deadlines", second="the slot is ended"
)
HALF_BUILT: Final = functools.partial(
    attempt, "56", "survive the death of those who build the slot", first="build pipe", second="sweep at the next start"
)
ADOPTION: Final = functools.partial(
    attempt, "57", "be lost to the next daemon, or be forged for it", first="commit; record, start time and nonce",
    second="unknown groups are killed",
)  # fmt: skip
LAYOUT: Final = functools.partial(
    attempt, "59", "use a sibling's addresses", first="rotation of the zygote", second="documented for one generation"
)
NUMBERS: Final = functools.partial(attempt, "60", "predict a sibling's random numbers", first="reseeded after the fork")
