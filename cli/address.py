"""How things are named on the command line: a tenant, and its model as ``TENANT/MODEL`` or as two words."""

import re
from typing import Final, NamedTuple

from bedsit.ipc.errors import error

_TENANT: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")


def check_tenant_name(name: str) -> str:
    """The name itself when it is one; else ``input.invalid``."""
    if not _TENANT.fullmatch(name):
        raise error(
            "input.invalid", f"tenant name {name!r} is not allowed", "a-z first, then a-z 0-9 -, at most 31 characters"
        )
    return name


class Address(NamedTuple):
    """A model of a tenant."""

    tenant: str
    model: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.model}"


def parse_address(first: str, second: str | None, tenant: str | None = None) -> Address:
    """The address in the given words. Raises ``request.invalid`` when a part is missing or there twice."""
    head, slash, tail = first.partition("/")
    parts = [p for p in (tenant, head, tail if slash else None, second) if p is not None]
    if len(parts) != 2 or not all(parts):  # noqa: PLR2004 - tenant and model
        raise error(
            "request.invalid", f"{' '.join(parts)!r} does not name one model of one tenant", "write TENANT/MODEL"
        )
    return Address(*parts)
