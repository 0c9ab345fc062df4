"""Guaranteed parts of the processors, as weights: how heavy a slot has to be beside the others that there are. Pure.

Weights are relative, so what a guarantee needs changes with every slot that comes or goes; who has none is left at its
own weight. A group that is not runnable takes nothing: what a guaranteed tenant does not use is everybody's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

_MAX_WEIGHT: Final = 10_000
#: Where everything is promised to some, the others share so much.
_LEAST_REST: Final = 0.01


@dataclass(frozen=True)
class Claim:
    """One slot: whose it is, its own weight, and the part (0 to 1) that all slots of its tenant have together."""

    tenant: str
    weight: int
    min_share: float = 0.0


def weigh(claims: Mapping[str, Claim]) -> dict[str, int]:
    """The weight of each slot, 1 to 10,000, with which every tenant has at least its part when all of them are busy."""
    by_tenant = Counter[str]()
    slots = Counter[str]()
    for claim in claims.values():
        by_tenant[claim.tenant] += claim.weight
        slots[claim.tenant] += 1
    promised = {claim.tenant: claim.min_share for claim in claims.values() if claim.min_share}
    raised = _raise(by_tenant, promised)
    exact = {
        slot: raised[claim.tenant] / slots[claim.tenant] if claim.tenant in raised else float(claim.weight)
        for slot, claim in claims.items()
    }
    scale = min(1.0, _MAX_WEIGHT / max(exact.values(), default=1.0))
    return {slot: min(_MAX_WEIGHT, max(1, ceil(weight * scale))) for slot, weight in exact.items()}


def _raise(weights: Mapping[str, int], promised: Mapping[str, float]) -> dict[str, float]:
    """Of the tenants that were *promised* more than their weight gives them: the weight that does.

    Each that is raised makes the others' part smaller, and so the next one may have to be.
    """
    raised: dict[str, float] = {}
    while True:
        rest = sum(weight for tenant, weight in weights.items() if tenant not in raised)
        total = rest / max(_LEAST_REST, 1 - sum(promised[tenant] for tenant in raised))
        short: Sequence[str] = [
            tenant for tenant, share in promised.items() if tenant not in raised and weights[tenant] < share * total
        ]
        if not short:
            return {tenant: promised[tenant] * total for tenant in raised}
        raised.update(dict.fromkeys(short, 0.0))
