"""Xids in words: what the driver says when it found something wrong with a GPU, and whether the GPU can be used on.

Source: NVIDIA, "Xid Errors" (docs.nvidia.com/deploy/xid-errors). What is not listed is taken for the GPU's fault: a
tenant is sooner kept away from a card that would have served it than given one that does not.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Xid(NamedTuple):
    """What a number means. *breaks*: nothing new belongs on the GPU until somebody has looked at it."""

    meaning: str
    breaks: bool


_UNKNOWN: Final = "a fault that this bedsit has no words for"
_XIDS: Final[Mapping[int, Xid]] = {
    # A program's fault: its process dies, the GPU goes on.
    13: Xid("a program made the graphics engine fail, as by an index out of bounds", breaks=False),
    31: Xid("a program touched GPU memory that is not its own", breaks=False),
    32: Xid("a program sent a corrupt stream of commands", breaks=False),
    43: Xid("a program's work was stopped after a fault", breaks=False),
    45: Xid("a program's work was cleaned up after it was killed or had failed", breaks=False),
    68: Xid("the video decoder failed", breaks=False),
    69: Xid("a program used a class of the graphics engine wrongly", breaks=False),
    # Memory: the first three are the card repairing itself.
    63: Xid("a row of memory will be replaced at the next reset", breaks=False),
    92: Xid("many corrected memory errors", breaks=False),
    94: Xid("a memory error that was contained: it ended the program that met it", breaks=False),
    48: Xid("a memory error that could not be corrected", breaks=True),
    64: Xid("a row of memory could not be replaced", breaks=True),
    95: Xid("a memory error that was not contained: any program on the GPU may have wrong data", breaks=True),
    140: Xid("a memory error that could not be recovered from", breaks=True),
    # The card itself.
    61: Xid("the GPU's microcontroller stopped", breaks=True),
    62: Xid("the GPU's microcontroller halted", breaks=True),
    74: Xid("an NVLink failed", breaks=True),
    79: Xid("the GPU has fallen off the bus", breaks=True),
    109: Xid("switching between programs took too long", breaks=True),
    119: Xid("the GPU's system processor (GSP) does not answer", breaks=True),
    120: Xid("the GPU's system processor (GSP) failed", breaks=True),
    121: Xid("a chip-to-chip link failed", breaks=True),
    143: Xid("the GPU could not be initialised", breaks=True),
    154: Xid("the driver wants another recovery action: nvidia-smi -q -d GPU_RECOVERY_ACTION", breaks=False),
}


def explain_xid(number: int) -> Xid:
    """What the Xid means."""
    return _XIDS.get(number) or Xid(_UNKNOWN, breaks=True)
