"""Cards as NVML tells them, with their MIG tables.

Sources, and how far they go:

* H100: measured by us, docs/gpu/2026-11-26-h100.json (a test holds it to that).
* A100, A30: ``nvidia-smi mig -lgip`` and ``-lgipp`` of such cards, as quoted in the MIG User Guide and elsewhere.
* H200: SMs measured in public (16, 26, 32, 60, 64, 132); places as on the H100, whose layout it has.
* B200: names, counts and fractions of the MIG User Guide; 18 SMs a slice of NVIDIA's go-nvml mock; places as on the
  H100. Not seen on a card: sizes are not to be relied on.

Names, places, counts and memory are those of ``supervisor/placement/profiles.py``, which says more about their sources;
a test reads them back through the binding and compares.
"""

from dataclasses import dataclass
from typing import Final

_GIB: Final = 1 << 30
_ONES: Final = "0:1,1:1,2:1,3:1,4:1,5:1,6:1"


@dataclass(frozen=True)
class Card:
    """A model of card: name, bytes, CUDA cores, compute capability, GPM, and its profiles.

    A profile is (NVML's enumeration, id, slices, how many fit, SMs, MB, places, name).
    """

    name: str
    memory_bytes: int
    cores: int
    capability: tuple[int, int]
    gpm: bool
    profiles: tuple[tuple[int, int, int, int, int, int, str, str], ...]


def _seven(
    sms: tuple[int, int, int, int, int, int], mb: tuple[int, int, int, int], names: tuple[str, str, str, str]
) -> tuple[tuple[int, int, int, int, int, int, str, str], ...]:
    """The profiles of a card of seven compute and eight memory slices.

    SMs of 1g, double 1g, 2g, 3g, 4g, 7g; MB and names of an eighth, a quarter, a half and all of the memory.
    """
    one, double, two, three, four, seven = sms
    return (
        (0, 19, 1, 7, one, mb[0], _ONES, f"MIG 1g.{names[0]}"),
        (1, 14, 2, 3, two, mb[1], "0:2,2:2,4:2", f"MIG 2g.{names[1]}"),
        (2, 9, 3, 2, three, mb[2], "0:4,4:4", f"MIG 3g.{names[2]}"),
        (3, 5, 4, 1, four, mb[2], "0:4", f"MIG 4g.{names[2]}"),
        (4, 0, 7, 1, seven, mb[3], "0:8", f"MIG 7g.{names[3]}"),
        (7, 20, 1, 1, one, mb[0], _ONES, f"MIG 1g.{names[0]}+me"),
        (9, 15, 1, 4, double, mb[1], "0:2,2:2,4:2,6:2", f"MIG 1g.{names[1]}"),
    )


A100: Final = Card(
    *("NVIDIA A100-SXM4-40GB", 40 * _GIB, 6912, (8, 0), False),
    _seven((14, 14, 28, 42, 56, 98), (4864, 9856, 19968, 40192), ("5gb", "10gb", "20gb", "40gb")),
)
A30: Final = Card(
    *("NVIDIA A30", 24 * _GIB, 3584, (8, 0), False),
    (
        (0, 14, 1, 4, 14, 5952, "0:1,1:1,2:1,3:1", "MIG 1g.6gb"),
        (1, 5, 2, 2, 28, 11968, "0:2,2:2", "MIG 2g.12gb"),
        (3, 0, 4, 1, 56, 24000, "0:4", "MIG 4g.24gb"),
        (7, 21, 1, 1, 14, 5952, "0:1,1:1,2:1,3:1", "MIG 1g.6gb+me"),
        (8, 6, 2, 1, 28, 11968, "0:2,2:2", "MIG 2g.12gb+me"),
    ),
)
H100: Final = Card(
    *("NVIDIA H100 80GB HBM3", 85520809984, 16896, (9, 0), True),
    _seven((16, 26, 32, 60, 64, 132), (9984, 20096, 40448, 81152), ("10gb", "20gb", "40gb", "80gb")),
)
H200: Final = Card(
    *("NVIDIA H200", 141 * _GIB, 16896, (9, 0), True),
    _seven((16, 26, 32, 60, 64, 132), (16384, 33280, 66560, 143360), ("18gb", "35gb", "71gb", "141gb")),
)
B200: Final = Card(
    *("NVIDIA B200", 180 * _GIB, 18944, (10, 0), True),
    _seven((18, 18, 36, 54, 72, 126), (19312, 38623, 77247, 154495), ("23gb", "45gb", "90gb", "180gb")),
)
#: A card that cannot be cut.
L4: Final = Card("NVIDIA L4", 24 * _GIB, 7424, (8, 9), False, ())
