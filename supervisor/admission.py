"""What the router may be asked to hold a tenant or a model to: the ranges, once, for configuration and admin API.

The database has them as constraints of its own (``migrations/0005_admission.sql``), because it outlives this code.
"""

from typing import Annotated, Final

from msgspec import Meta

Weight = Annotated[int, Meta(ge=1, le=10_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
#: Requests a second; 0 is no limit. A comparison with NaN is false, so msgspec refuses it here.
Rate = Annotated[float, Meta(ge=0, le=1_000_000)]
Burst = Annotated[int, Meta(ge=1, le=100_000)]
#: 0 is no limit.
Concurrency = Annotated[int, Meta(ge=0, le=10_000)]
QueueLength = Annotated[int, Meta(ge=1, le=100_000)]
QueueBytes = Annotated[int, Meta(ge=64 << 10, le=16 << 30)]
Sessions = Annotated[int, Meta(ge=1, le=100_000)]
#: 0: only the tenant's limit.
ModelQueueLength = Annotated[int, Meta(ge=0, le=100_000)]
#: Low, normal, high.
Priority = Annotated[int, Meta(ge=0, le=2)]

#: All tenants together may be promised this much, and what adding up parts like 0.1 leaves over.
SHARES_MAX: Final = 1 + 1e-9
