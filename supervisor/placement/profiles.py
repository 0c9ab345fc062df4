"""MIG profiles: what a GPU can be cut into, and where. Of a GPU that is there the driver says so; these are on record.

A GPU has eight slots of memory (an A30 four). An instance of a profile takes *size* of them in a row and can begin at
some of them only. Instances that do not overlap never need more compute slices than there are, so slots are all that
counts; `nvidia-smi mig -lgipp` prints them.
"""

from dataclasses import dataclass
from typing import Final

_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Profile:
    """One kind of instance: *size* slots from one of *starts* on, at most *limit* of it on a GPU."""

    name: str
    memory_bytes: int
    size: int
    starts: tuple[int, ...]
    limit: int

    @property
    def has_media(self) -> bool:
        """Whether it comes with the media engines, of which a GPU has one set to give away."""
        return "+me" in self.name


@dataclass(frozen=True)
class Table:
    """The profiles of one model of GPU, and how many slots it has."""

    slots: int
    profiles: tuple[Profile, ...]

    def find(self, name: str) -> Profile | None:
        """The profile of that name."""
        return next((profile for profile in self.profiles if profile.name == name), None)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all profiles, smallest first."""
        return tuple(profile.name for profile in self.profiles)


def _cut(names: str, sizes_mib: tuple[int, int, int, int]) -> Table:
    """The cut that A100, H100, H200 and B200 have in common; *sizes_mib* of one, two, four and eight slots."""
    one, media, wide, two, three, four, seven = names.split()
    mib1, mib2, mib4, mib8 = (mib * _MIB for mib in sizes_mib)
    return Table(
        8,
        (
            Profile(one, mib1, 1, (0, 1, 2, 3, 4, 5, 6), 7),
            Profile(media, mib1, 1, (0, 1, 2, 3, 4, 5, 6), 1),
            Profile(wide, mib2, 2, (0, 2, 4, 6), 4),
            Profile(two, mib2, 2, (0, 2, 4), 3),
            Profile(three, mib4, 4, (0, 4), 2),
            Profile(four, mib4, 4, (0,), 1),
            Profile(seven, mib8, 8, (0,), 1),
        ),
    )


#: By the words of a GPU's name. Placements: one H100, asked over NVML (docs/gpu/2026-11-26-h100.json, T16), and what
#: `nvidia-smi mig -lgipp` says on A100, A30 and H100 NVL as others published it. For H200 and B200 the guide has the
#: same fractions and counts (docs.nvidia.com/datacenter/tesla/mig-user-guide, r620). In the tables of go-nvml's mock 3g
#: is three slots long: no card says so.
#: Memory: NVML on that H100, `nvidia-smi mig -lgip` of A100 and A30 as published, which rounds to 0.01 GiB what is a
#: multiple of 32 MiB. H200: published for 1g, 2g and 7g;
#: twice 2g for 3g and 4g, the least it can be. B200: nobody's output is known; eighths of a tenth below 180 GB.
TABLES: Final = {
    "A100 40GB": _cut("1g.5gb 1g.5gb+me 1g.10gb 2g.10gb 3g.20gb 4g.20gb 7g.40gb", (4864, 9856, 19968, 40192)),
    "A100 80GB": _cut("1g.10gb 1g.10gb+me 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb", (9728, 19968, 40192, 80896)),
    "A30": Table(
        4,
        (
            Profile("1g.6gb", 5952 * _MIB, 1, (0, 1, 2, 3), 4),
            Profile("1g.6gb+me", 5952 * _MIB, 1, (0, 1, 2, 3), 1),
            Profile("2g.12gb", 11968 * _MIB, 2, (0, 2), 2),
            Profile("2g.12gb+me", 11968 * _MIB, 2, (0, 2), 1),
            Profile("4g.24gb", 24000 * _MIB, 4, (0,), 1),
        ),
    ),
    "H100 80GB": _cut("1g.10gb 1g.10gb+me 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb", (9984, 20096, 40448, 81152)),
    "H200": _cut("1g.18gb 1g.18gb+me 1g.35gb 2g.35gb 3g.71gb 4g.71gb 7g.141gb", (16384, 33280, 66560, 143360)),
    "B200": _cut("1g.23gb 1g.23gb+me 1g.45gb 2g.45gb 3g.90gb 4g.90gb 7g.180gb", (19312, 38623, 77247, 154495)),
}
