"""What a client may ask the router itself, on its lane: which models its tenant has, and what one of them takes."""

from typing import Any

from bedsit.ipc.errors import error
from bedsit.ipc.snapshot import ModelView
from bedsit.supervisor.router.tenants import Tenant


def answer(tenant: Tenant, question: Any) -> dict[str, Any]:
    """The answer to one question. Raises ``model.not_found``, ``wire.malformed``."""
    match question:
        case {"op": "describe", "model": str(name), "version": int(version)}:
            model = tenant.model_names.get(name)
            if model is None:
                raise error("model.not_found", f"tenant {tenant.view.name} has no model {name[:64]!r}")
            wanted = _find_version(model, version)
            manifest = next(v.manifest for v in model.versions if v.version == wanted)
            return {"number": model.number, "version": wanted, "manifest": manifest}
        case {"op": "models"}:
            return {
                "models": [
                    (m.name, [m.default, *(v.version for v in m.versions if v.version != m.default)])
                    for m in tenant.view.models
                ]
            }
    raise error("wire.malformed", "the router knows describe and models")


def _find_version(model: ModelView, version: int) -> int:
    """The version that is meant, 0 being the default. Raises ``model.not_found``."""
    wanted = version or model.default
    if wanted not in {v.version for v in model.versions}:
        raise error("model.not_found", f"model {model.name} has no version {wanted}")
    return wanted
