"""A worker's turns on a device that several tenants take turns on.

The router says whose turn it is in the lease page, and looks at the clock itself; this file is how a worker that means
well goes along. One that does not is charged, and ended.
"""

import time
from collections.abc import Callable

import torch

from bedsit.ipc.errors import error
from bedsit.ipc.leasepage import LeaseView, Turn, split_word
from bedsit.ipc.slot import Word


class Turns:
    """*hear* takes the next packet, waiting for it, and says whether the router went away; *say* tells it.

    *finish* waits until what was launched has run, and says whether that was on a device of its own.
    """

    def __init__(
        self,
        page: LeaseView,
        hear: Callable[[], bool],
        say: Callable[[Word, int], None],
        clock: Callable[[], int] = time.monotonic_ns,
        finish: Callable[[], bool] | None = None,
    ) -> None:
        self._words = page.words
        self._clock = clock
        self._finish = finish or _finish
        self._hear = hear
        self._say = say
        self._spent = -1  # the last epoch whose turn is over

    def begin(self) -> bool:
        """Wait for a turn; False when the router went away, and nobody wants what was to be run."""
        return not self._words[0] & 3 or self._wait()

    def end(self) -> None:
        """A batch has run: where that was on a GPU, its turn is over before its answers are packed and sent.

        On cores it is not: packing takes them, too. Nothing where nobody waits. To be said before it is answered: until
        that is read, the turn in the page is its own. A second time is none.
        """
        if self._words[0] & 3:
            state, epoch = split_word(self._words[0])
            if state == Turn.HELD and epoch > self._spent:
                is_elsewhere = self._finish()
                self._spent = epoch
                if is_elsewhere:
                    self._say(Word.END, epoch)

    def yield_point(self) -> None:
        """Let others have their turn if it is theirs, and come back at the next one. Costs next to nothing if not.

        Raises ``request.cancelled`` when nobody wants the result any more.
        """
        if self._words[0] & 3:
            self._yield()

    def _yield(self) -> None:
        state, epoch = split_word(self._words[0])
        if state == Turn.HELD and epoch > self._spent and self._clock() < self._words[1]:
            return
        self._finish()
        self._spent = epoch
        self._say(Word.YIELD, epoch)
        if not self._wait():
            raise error("request.cancelled", "the router went away while the call waited for its turn")

    def _wait(self) -> bool:
        while True:
            state, epoch = split_word(self._words[0])
            if state == Turn.FREE or (state == Turn.HELD and epoch > self._spent):
                return True
            if self._hear():
                return False


def _finish() -> bool:
    """What was launched on a GPU runs in our turn."""
    if not torch.cuda.is_initialized():
        return False
    torch.cuda.synchronize()
    return True
