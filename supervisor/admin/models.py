"""model.*: deploy, list, show, set, delete. Archives and manifests are bytes here."""

from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from bedsit.ipc.errors import error
from bedsit.supervisor.admin import schema
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.admin.rolling import roll
from bedsit.supervisor.desk import Desk, now_text, wish_of
from bedsit.supervisor.effects import Draft
from bedsit.supervisor.operations import Manifests
from bedsit.supervisor.policy import ModelSet
from bedsit.supervisor.registry import MODEL_ADMISSION, ModelRow, NewVersion, TenantRow


async def deploy(desk: Desk, request: schema.ModelDeploy, call: Call) -> dict[str, Any]:
    """Take the archive in, load it beside what the tenant has in a fresh slot, then switch over. Or change nothing."""
    row = desk.registry.tenant(request.tenant)
    _check_deploy(desk, row, request)
    desk.incoming.append(request.digest)
    try:
        await _receive(desk, request, call)
        async with desk.locks[row.name]:
            row = desk.registry.tenant(request.tenant)  # the upload took a while
            _check_deploy(desk, row, request)
            number, version = desk.registry.propose_version(row.number, request.name)
            models: ModelSet = tuple(sorted((*wish_of(desk.registry, row).models, (number, version))))
            place = (row.name, number, version)
            desk.effects.drafts[place] = Draft(request.name, request.digest, request.size)
            try:
                commit = partial(_commit, desk, row.number, number, version, request)
                await roll(desk, row, models, commit, call, request.timeout_s)
            finally:
                del desk.effects.drafts[place]
    finally:
        desk.incoming.remove(request.digest)
        desk.collect_artifacts()
    desk.events.add("model.deployed", f"{request.name} version {version}", row.name)
    await desk.settle()
    return view(row.name, _find(desk, row, request.name))


async def list_all(desk: Desk, request: schema.ModelList, _call: Call) -> list[dict[str, Any]]:
    """All models of a tenant."""
    row = desk.registry.tenant(request.tenant)
    return [view(row.name, model) for model in desk.registry.models(row.number)]


async def show(desk: Desk, request: schema.ModelShow, _call: Call) -> dict[str, Any]:
    """One model."""
    row = desk.registry.tenant(request.tenant)
    return view(row.name, _find(desk, row, request.name))


async def set_admission(desk: Desk, request: schema.ModelSet, _call: Call) -> dict[str, Any]:
    """Other limits of one model, at once. A deployment under way leaves them alone, and is not waited for."""
    row = desk.registry.tenant(request.tenant)
    old = _find(desk, row, request.name)
    said = {name: getattr(request, name) for name in MODEL_ADMISSION if getattr(request, name) is not None}
    if not said:
        raise error("request.invalid", "model.set: nothing to set", f"say at least one of {', '.join(MODEL_ADMISSION)}")
    wanted = replace(old, **said)
    if wanted != old:
        desk.registry.set_admission(row.number, wanted)
        words = ", ".join(f"{name} {value:g}" for name, value in said.items())
        desk.events.add("model.changed", f"{old.name}: {words}", row.name)
        desk.publish()
    await desk.settle()
    return view(row.name, wanted)


async def release(desk: Desk, request: schema.ModelRelease, _call: Call) -> dict[str, Any]:
    """Bring versions that were taken out of use back; the newest one answers. Blamed again, it goes again."""
    async with desk.locks[request.tenant]:
        row = desk.registry.tenant(request.tenant)
        model = _find(desk, row, request.name)
        if all(version.quarantined_at is None for version in model.versions):
            raise error("request.invalid", f"no version of model {model.name!r} is in quarantine")
        desk.registry.release(row.number, model.number)
        desk.events.add("model.released", model.name, row.name)
        desk.tell_house(row)
        await desk.settle()
        return view(row.name, _find(desk, row, request.name))


async def delete(desk: Desk, request: schema.ModelDelete, call: Call) -> dict[str, Any]:
    """Load what is left in a fresh slot, then switch over. Or change nothing."""
    async with desk.locks[request.tenant]:
        row = desk.registry.tenant(request.tenant)
        model = _find(desk, row, request.name)
        known = {version.version for version in model.versions}
        retired = known if request.version is None else {request.version} & known
        if not retired:
            raise error("model.not_found", f"model {model.name!r} has no version {request.version}")
        left = tuple(
            place for place in wish_of(desk.registry, row).models if place[0] != model.number or place[1] not in retired
        )

        def commit(_manifests: Manifests) -> None:
            desk.registry.delete_versions(row.number, model.number, retired)

        if row.wanted == "running":
            await roll(desk, row, left, commit, call, None)
        else:
            commit({})
            desk.tell_house(row)
        versions = ", ".join(map(str, sorted(retired)))
        desk.events.add("model.deleted", f"{model.name} version {versions}", row.name)
    desk.collect_artifacts()
    await desk.settle()
    return {}


def view(tenant: str, model: ModelRow) -> dict[str, Any]:
    """A model as the API shows it."""
    return {
        "tenant": tenant,
        "name": model.name,
        "number": model.number,
        "default": model.default,
        "idempotent": model.idempotent,
        **{name: getattr(model, name) for name in MODEL_ADMISSION},
        "versions": [dict(vars(version)) for version in model.versions],
    }


def _check_deploy(desk: Desk, row: TenantRow, request: schema.ModelDeploy) -> None:
    """What can be known before a byte is sent."""
    if row.wanted != "running":
        hint = f"start it with: bedsit tenant start {row.name}"
        raise error("tenant.stopped", f"tenant {row.name!r} is stopped", hint)
    if request.size > desk.config.artifact_bytes:
        allowed = f"this box takes {desk.config.artifact_bytes}"
        raise error("request.invalid", f"an archive of {request.size} bytes is too large; {allowed}")
    known = {model.name: model for model in desk.registry.models(row.number)}
    if request.name in known and not request.replace:
        hint = "add a version and make it the default with: --replace"
        raise error("model.exists", f"tenant {row.name!r} has a model {request.name!r} already", hint)


async def _receive(desk: Desk, request: schema.ModelDeploy, call: Call) -> None:
    """Take the archive in. The caller sends it in any case; bytes that are here already are only read past."""
    call.progress("upload")
    async with aclosing(call.body(request.size)) as pieces:
        with desk.artifacts.receive(request.digest, request.size) as upload:
            async for piece in pieces:
                upload.write(piece)


def _commit(
    desk: Desk, tenant: int, number: int, version: int, request: schema.ModelDeploy, manifests: Manifests
) -> None:
    manifest = manifests.get((number, version))
    if manifest is None:
        raise error("model.load_failed", "the worker says that it serves, but described no model")
    desk.publisher.check_room(len(manifest))
    new = NewVersion(
        number=number,
        version=version,
        name=request.name,
        digest=request.digest,
        size=request.size,
        idempotent=request.idempotent,
        manifest=manifest,
    )
    desk.registry.add_version(tenant, new, now_text())


def _find(desk: Desk, row: TenantRow, name: str) -> ModelRow:
    for model in desk.registry.models(row.number):
        if model.name == name:
            return model
    raise error("model.not_found", f"tenant {row.name!r} has no model {name!r}", "list them with: bedsit model list")
