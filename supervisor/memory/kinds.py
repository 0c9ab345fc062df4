"""How a tenant is held to its part of a GPU's memory. Pure."""

from collections.abc import Mapping
from typing import Final, Literal

#: The card itself, its driver, or nobody but the worker and who watches it. Empty: it is on no GPU.
Held = Literal["", "hardware", "driver", "soft"]

#: The weakest last.
ORDER: Final[tuple[Held, ...]] = ("", "hardware", "driver", "soft")
#: Who is above its quota by no more than this is told, not ended: torch's kernels and libraries take some of it
#: beside tensors and context (docs/gpu, T1: 200 MiB), and NVML counts in other pieces than torch.
SLACK_BYTES: Final = 256 << 20
MEANING: Final[Mapping[Held, str]] = {
    "hardware": "it has this memory for itself, and there is no more for it",
    "driver": "the driver refuses what would be more",
    "soft": f"nothing refuses more: torch keeps to it, and a slot more than {SLACK_BYTES >> 20} MiB above it is ended"
    " within seconds. It guards against accidents; for a wall take MIG or a whole GPU",
}
