"""Which generation of zygotes forks, and when the next one takes over. Pure: a part of the lifecycle's memory.

Why rotate: the slots of one generation are copies of one process and share its address layout, so whoever learns an
address in one slot knows it in all its siblings. A new process has a layout of its own.

Guarantees: one start at a time; a generation that has forked enough goes on until the next one is up; whoever was
asked to start and fails rests longer each time.
"""

from dataclasses import dataclass

from bedsit.supervisor.tenancy import backoff_s


@dataclass
class Rotation:
    """*current* forks, and has *forks* times; blank slots of generations before *oldest_kept* are to be replaced."""

    forks_max: int
    current: int | None = None
    forks: int = 0
    oldest_kept: int = 0
    failures: int = 0
    starting: bool = False
    resting: bool = False
    #: The generation that was due died before the next one was up, which has its blank slots to replace all the same.
    is_owed: bool = False

    @property
    def is_due(self) -> bool:
        """Whether the current generation has forked enough."""
        return self.current is not None and self.forks >= self.forks_max

    @property
    def needs_start(self) -> bool:
        """Whether the next generation has to be started now."""
        return (self.current is None or self.is_due) and not self.starting and not self.resting

    def up(self, generation: int, forks: int) -> int | None:
        """One answers, which has forked *forks* times before. Gives the generation that it takes over from."""
        former, self.current, self.forks = self.current, generation, forks
        self.starting = False
        if self.is_owed or former is not None:
            self.oldest_kept, self.is_owed = generation, False
        return former if former != generation else None

    def down(self, generation: int) -> float:
        """The current generation ended, or one did not start. Gives how long to rest before the next start."""
        if generation == self.current:
            self.is_owed |= self.is_due
            self.current = None
        else:
            self.starting = False
        self.failures += 1
        delay_s = backoff_s(self.failures)
        self.resting = delay_s > 0
        return delay_s

    def lasted(self) -> None:
        """The current generation has lived long, whether or not anybody needed a slot of it."""
        self.failures = 0

    def built(self, generation: int) -> None:
        """A slot came up: its generation works. One that is due proves nothing for the next one."""
        if generation == self.current and not self.is_due:
            self.failures = 0
