"""How an operator wants tenants to be placed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from bedsit.ipc.snapshot import ServiceClass

#: Full GPUs first, which leaves others whole; or the emptiest first, which leaves each tenant more to burst into.
Order = Literal["pack", "spread"]

_SHARES: Mapping[ServiceClass, float] = MappingProxyType({"realtime": 1.0, "interactive": 2.0, "batch": 4.0})


@dataclass(frozen=True)
class Rules:
    """The *order*, and how many times over things may be promised.

    *share_factors*: shares of a GPU's time, by the class of who has them; realtime tenants count in full. What a tenant
    is guaranteed counts in full whatever its class. *memory_factor*: memory of a time-sliced GPU; above 1 somebody may
    have to be suspended for somebody else to run.
    """

    order: Order = "pack"
    share_factors: Mapping[ServiceClass, float] = field(default_factory=lambda: _SHARES)
    memory_factor: float = 1.0

    def __post_init__(self) -> None:
        if any(
            not math.isfinite(factor) or factor < 1 for factor in (*self.share_factors.values(), self.memory_factor)
        ):
            raise ValueError("a factor is a number from 1 on")

    def charge(self, share_milli: int, service_class: ServiceClass) -> int:
        """What a share takes of a GPU's thousand."""
        return math.ceil(share_milli / self.share_factors.get(service_class, 1.0))


USUAL = Rules()
