"""``bedsit model``: what tenants run."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bedsit.cli.address import Address, parse_address
from bedsit.cli.admission import (
    PRIORITIES,
    Burst,
    Concurrency,
    ModelQueue,
    PriorityName,
    Rate,
    describe_concurrency,
    describe_priority,
    describe_rate,
    read_flow,
)
from bedsit.cli.box import Box
from bedsit.cli.command import make_noun, verb
from bedsit.cli.complete import ModelAddress, TenantName, Yes, complete_tenants
from bedsit.cli.option import read_option
from bedsit.cli.pack import open_bundle
from bedsit.cli.render import Stopwatch
from bedsit.cli.table import Column, Row, field
from bedsit.cli.text import format_age, format_mib, format_size, parse_count, parse_duration
from bedsit.ipc.admin import Body
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import decode_manifest

app = make_noun("model", "Models: what tenants run.")

Second = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="The model, if the first word is the tenant.")]
COLUMNS: Final = (
    field("TENANT", "tenant"),
    field("MODEL", "name"),
    field("DEFAULT", "default", right=True),
    Column("VERSIONS", lambda row: ",".join(str(v.get("version")) for v in _versions(row))),
    Column("QUARANTINE", lambda row: ",".join(str(v.get("version")) for v in _versions(row) if _is_quarantined(v))),
    Column("SIZE MiB", lambda row: format_mib(_newest(row).get("size")), right=True),
    field("IDEMPOTENT", "idempotent"),
    Column("PRIORITY", lambda row: describe_priority(row.get("priority"))),
    Column("DEPLOYED", lambda row: format_age(_newest(row).get("deployed_at"))),
)


@verb(
    app,
    "deploy",
    examples="""
    bedsit model deploy vision ./digits
    bedsit model deploy vision ./digits --replace --timeout 5m
    """,
)
def deploy_model(
    box: Box,
    tenant: TenantName,
    folder: Annotated[
        Path, typer.Argument(readable=False, metavar="FOLDER", help="A bundle: a folder with a bedsit.toml.")
    ],
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="The model exists: add a version and make it the default.")
    ] = False,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Give up loading after this long.")] = None,
) -> None:
    """Pack a bundle folder, upload it, and load it in a fresh slot of the tenant.

    The tenant's running slot goes on answering until the new one has loaded every model; if loading fails, nothing has
    changed. A bundle is a folder with a bedsit.toml:

        name = "digits"
        runner = "python"                     # or "torch-export"
        entry = "model:build"                 # build(bundle) in model.py; or "model.pt2"
        weights = ["model.safetensors"]       # optional: mapped, not copied
        [[inputs]]
        name = "image"
        dtype = "float32"
        shape = [-1, 1, 8, 8]                 # -1: any size
        [[outputs]]
        name = "logits"
        dtype = "float32"
        shape = [-1, 10]
    """
    with box.screen.phases() as phases:
        watch = Stopwatch(phases)
        with watch("pack"):
            bundle = open_bundle(folder)
            digest = bundle.digest()
        with bundle.open() as archive:
            model = box.call_telling(
                phases,
                "model.deploy",
                body=Body(archive, bundle.size),
                tenant=tenant,
                name=bundle.manifest.name,
                size=bundle.size,
                digest=digest,
                idempotent=bundle.manifest.idempotent,
                replace=replace,
                timeout_s=parse_duration(timeout) if timeout else None,
            )
    _show(box, model)
    box.screen.next(f"bedsit infer {tenant}/{bundle.manifest.name} -i {bundle.manifest.inputs[0].name}=...")


@verb(app, "list", alias="ls", examples="bedsit model list\nbedsit model list vision -o name")
def list_models(
    box: Box,
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="Only this one's.", autocompletion=complete_tenants)
    ] = None,
) -> None:
    """List the models of a tenant, or of all."""
    names = [tenant] if tenant else [str(row.get("name")) for row in box.call("tenant.list")]
    rows = [_readable(model) for name in names for model in box.call("model.list", tenant=name)]
    box.screen.show_rows("model", rows, COLUMNS, _address)


@verb(app, "show", examples="bedsit model show vision/digits\nbedsit model show vision/digits -o json")
def show_model(box: Box, model: ModelAddress, second: Second = None) -> None:
    """Show a model: its versions, what it takes and what it gives."""
    at = parse_address(model, second)
    _show(box, box.call("model.show", tenant=at.tenant, name=at.model))


@verb(
    app,
    "set",
    examples="""
    bedsit model set vision/digits --rate 50/s --burst 10
    bedsit model set vision/digits --priority high --concurrency 4
    bedsit model set vision/nightly --priority low --queue 200
    bedsit model set vision/digits --rate max --concurrency max --queue max
    """,
)
def set_admission(
    box: Box,
    model: ModelAddress,
    second: Second = None,
    rate: Rate = None,
    burst: Burst = None,
    concurrency: Concurrency = None,
    queue: ModelQueue = None,
    priority: PriorityName = None,
) -> None:
    """Change a model's limits and priority; they hold at once.

    Its tenant's limits hold beside them. A new version of the model keeps them.
    """
    at = parse_address(model, second)
    said = read_flow(rate, burst, concurrency) | {
        "queue_max": read_option("--queue", queue, parse_count, 0),
        "priority": PRIORITIES.index(priority) if priority else None,
    }
    if all(value is None for value in said.values()):
        raise error("request.invalid", "nothing to set", "pass at least one option: bedsit model set --help")
    _show(box, box.call("model.set", tenant=at.tenant, name=at.model, **said))


@verb(app, "release", examples="bedsit model release vision/digits")
def release_model(box: Box, model: ModelAddress, second: Second = None) -> None:
    """Bring the versions of a model back that were taken out of use; the newest one answers again.

    A version is taken out of use when it was running at several deaths of its tenant's slots in a row
    (bedsit tenant set TENANT --quarantine-after N). If it is mended: deploy it as a new version instead.
    """
    at = parse_address(model, second)
    _show(box, box.call("model.release", tenant=at.tenant, name=at.model))


@verb(
    app,
    "delete",
    alias="rm",
    examples="bedsit model delete vision/digits\nbedsit model delete vision/digits --version 1 --yes",
)
def delete_model(
    box: Box,
    model: ModelAddress,
    second: Second = None,
    version: Annotated[int | None, typer.Option(metavar="N", help="Only this version.")] = None,
    *,
    yes: Yes = False,
) -> None:
    """Delete a model, or one version of it. This cannot be undone."""
    at = parse_address(model, second)
    what = f"model {at}" if version is None else f"version {version} of model {at}"
    if not yes:
        box.screen.confirm(f"Delete {what}?", flag="--yes")
    box.call("model.delete", tenant=at.tenant, name=at.model, version=version)
    box.screen.note(f"{what} deleted")


def _show(box: Box, model: dict[str, Any]) -> None:
    model = _readable(model)
    fields: list[tuple[str, object]] = [
        ("model", _address(model)),
        ("default", model.get("default")),
        ("idempotent", model.get("idempotent")),
        ("priority", describe_priority(model.get("priority"))),
        ("rate", describe_rate(model)),
        ("concurrency", describe_concurrency(model)),
        ("queue", "its tenant's" if model.get("queue_max") == 0 else model.get("queue_max")),
    ]
    fields += [(f"version {version.get('version')}", _describe(version)) for version in _versions(model)]
    for key in ("inputs", "outputs"):
        specs = (_default(model).get("manifest") or {}).get(key, [])
        fields += [(key[:-1], f"{s['name']} {s['dtype']} {s['shape']}") for s in specs]
    box.screen.show_record("model", model, fields, _address(model))


def _describe(version: Row) -> str:
    text = f"{format_size(version.get('size'))}, {version.get('deployed_at')}, sha256 {str(version.get('digest'))[:12]}"
    return f"{text}, in quarantine since {version['quarantined_at']}" if _is_quarantined(version) else text


def _is_quarantined(version: Row) -> bool:
    return bool(version.get("quarantined_at"))


def _readable(model: Row) -> dict[str, Any]:
    """The model with its manifests, which the daemon passes on unread, as tables; None where one cannot be read."""
    return {**model, "versions": [{**v, "manifest": _read_manifest(v.get("manifest"))} for v in _versions(model)]}


def _read_manifest(data: object) -> dict[str, Any] | None:
    try:
        manifest = decode_manifest(data) if isinstance(data, bytes) else None
    except BedsitError:
        return None
    if manifest is None:
        return None
    tensors = {
        key: [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in getattr(manifest, key)]
        for key in ("inputs", "outputs")
    }
    return {"runner": manifest.runner, "entry": manifest.entry, "weights": list(manifest.weights), **tensors}


def _versions(model: Row) -> list[dict[str, Any]]:
    versions = model.get("versions")
    return versions if isinstance(versions, list) else []


def _newest(model: Row) -> Row:
    return _versions(model)[-1] if _versions(model) else {}


def _default(model: Row) -> Row:
    return next((v for v in _versions(model) if v.get("version") == model.get("default")), {})


def _address(row: Row) -> str:
    return str(Address(str(row.get("tenant", "")), str(row.get("name", ""))))
