"""``bedsit infer``: one request from the shell, as any program on the box would send it."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bedsit.cli.address import Address, parse_address
from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.complete import ModelAddress, complete_tenants
from bedsit.cli.key import read_key
from bedsit.cli.model import Second
from bedsit.cli.table import Column, field
from bedsit.cli.text import format_duration, parse_duration
from bedsit.ipc.errors import error

app = make_app()

if TYPE_CHECKING:
    from bedsit.ipc.client import Client


@verb(
    app,
    "infer",
    examples="""
    bedsit infer vision/digits -i image=image.npy
    bedsit infer vision/digits -i '[[[[0, 1, 2, 3, 4, 5, 6, 7], ...]]]' -o json
    bedsit infer vision/digits -i image=- --save out < image.json
    bedsit infer vision/digits -i image=image.npy --key-file vision.key
    """,
)
def infer(
    box: Box,
    model: ModelAddress,
    second: Second = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=VALUE",
            help="A .npy or .json file, JSON, or - for JSON on stdin; repeatable.",
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="The tenant.", autocompletion=complete_tenants)
    ] = None,
    version: Annotated[int | None, typer.Option(metavar="N", help="Not the default version but this one.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            readable=False, metavar="FILE", help="A file with the tenant's key, - for stdin; root needs none."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(readable=False, metavar="DIR", help="Write each output to DIR/NAME.npy.")
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Give up after this long.")] = "30s",
) -> None:
    """Send one request to a model and print what it answers.

    JSON numbers become the dtype that the model declares. NaN, Infinity and -Infinity are written as words, in quotes.
    """
    at = parse_address(model, second, tenant)
    timeout_s = parse_duration(timeout)
    words = inputs or []
    if str(key_file) == "-" and any(w == "-" or w.endswith("=-") for w in words):
        raise error("request.invalid", "stdin cannot be both the key and an input", "put one of them into a file")
    key = read_key(key_file, sys.stdin)
    with _open_client(box, at, key) as client:
        _call(box, client, at, words, version, save, timeout_s)


def _open_client(box: Box, at: Address, key: str | None) -> "Client":
    # Here and not above: numpy and libzmq take longer to load than any other command takes to run.
    from bedsit.ipc.client import Client  # noqa: PLC0415 - see above

    return Client(tenant=at.tenant, key=key, run_dir=str(box.run_dir))


def _call(
    box: Box,
    client: "Client",
    at: Address,
    words: list[str],
    version: int | None,
    save: Path | None,
    timeout_s: float,
) -> None:
    from bedsit.cli import tensors  # noqa: PLC0415 - numpy, as above

    manifest = client.describe(at.model, version)
    arrays = tensors.read_inputs(words, manifest, sys.stdin)
    began = time.monotonic()
    outputs = client.infer(at.model, arrays, version=version, timeout_s=timeout_s)
    took_s = time.monotonic() - began
    if save is not None:
        for path in tensors.save_outputs(outputs, save):
            box.screen.note(f"wrote {path}")
    rows: list[dict[str, Any]] = tensors.describe_outputs(outputs, manifest)
    columns = (
        field("OUTPUT", "name"),
        field("DTYPE", "dtype"),
        Column("SHAPE", lambda row: "x".join(map(str, row["shape"])) or "scalar"),
        Column("VALUES", tensors.preview),
    )
    box.screen.show_rows("output", rows, columns, lambda row: str(row["name"]))
    if took_s >= 1:
        box.screen.note(f"answered in {format_duration(took_s)}")
