"""bedsit: many tenants' models on one bare-metal GPU box, one jailed room each.

Programs on the box need only this module: ``bedsit.Client`` and ``bedsit.AsyncClient``.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["AsyncClient", "BedsitError", "Client", "__version__"]

if TYPE_CHECKING:
    from bedsit.ipc.aclient import AsyncClient
    from bedsit.ipc.client import Client
    from bedsit.ipc.errors import BedsitError

_HOMES = {
    "AsyncClient": "bedsit.ipc.aclient",
    "BedsitError": "bedsit.ipc.errors",
    "Client": "bedsit.ipc.client",
}


def __getattr__(name: str) -> object:
    # Lazy, so that the daemon, which must never load libzmq, can import its own package.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(name)
