"""The words in which the box reports."""

from typing import Final

#: In front of what is log and no verdict.
LOG: Final = "| "
#: The last line: from here on the box does nothing but end.
LAST: Final = "power-off"
