"""Values of options that are more than a number or a word: read here, refused with the option's name."""

from collections.abc import Callable
from typing import TypeVar

from bedsit.ipc.errors import BedsitError, error

T = TypeVar("T")


def read_option(
    option: str, text: str | None, parse: Callable[[str], T], unlimited: T | None = None, *, word: str = "max"
) -> T | None:
    """What *text* says, None where the option was not given. With *unlimited*, that is what the *word* means.

    Raises ``input.invalid``, naming the option.
    """
    if text is None:
        return None
    if text == word and unlimited is not None:
        return unlimited
    try:
        return parse(text)
    except BedsitError as e:
        raise error(
            e.code, f"{option}: {e.message}", f"{e.hint}, or {word}" if unlimited is not None else e.hint
        ) from None
