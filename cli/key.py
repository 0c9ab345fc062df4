"""``bedsit key``: what a program shows to be let in as a tenant."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_noun, verb
from bedsit.cli.complete import KeyId, TenantName, Yes
from bedsit.cli.render import Format
from bedsit.cli.table import Row, field
from bedsit.ipc.errors import error

app = make_noun("key", "Keys: what a program shows to be let in as a tenant.")

KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", readable=False, metavar="FILE", help="Write the key to this new file, mode 0600."),
]
COLUMNS: Final = (
    field("ID", "id"),
    field("LABEL", "label"),
    field("CREATED", "created_at"),
    field("REVOKED", "revoked_at"),
)


@verb(
    app,
    "create",
    examples="""
    bedsit key create vision --label web --key-file web.key
    bedsit key create vision -o json | jq -r .item.secret
    """,
)
def create_key(
    box: Box,
    tenant: TenantName,
    label: Annotated[str | None, typer.Option(metavar="TEXT", help="What the key is for.")] = None,
    key_file: KeyFile = None,
) -> None:
    """Make a new key for a tenant. It is shown this once and stored nowhere."""
    with open_key_file(key_file) as file:
        key = keep_secret(box, box.call("key.create", tenant=tenant, label=label), file, key_file)
    fields = [("tenant", tenant), ("key", key["id"]), ("secret", key.get("secret", f"in {key_file}"))]
    box.screen.show_record("key", {"tenant": tenant, **key}, fields, str(key["id"]))
    if box.screen.form is Format.NAME and "secret" in key:
        box.screen.note(f"key, shown once: {key['secret']}")


@verb(app, "list", alias="ls", examples="bedsit key list vision")
def list_keys(box: Box, tenant: TenantName) -> None:
    """List a tenant's keys, without their secrets."""
    box.screen.show_rows("key", box.call("key.list", tenant=tenant), COLUMNS, _id)


@verb(app, "revoke", examples="bedsit key revoke vision 1a2b3c4d --yes")
def revoke_key(box: Box, tenant: TenantName, key: KeyId, *, yes: Yes = False) -> None:
    """Revoke a key: programs that use it are refused from now on. This cannot be undone."""
    if not yes:
        box.screen.confirm(f"Revoke key {key} of tenant {tenant}?", flag="--yes")
    box.call("key.revoke", tenant=tenant, id=key)
    box.screen.note(f"key {key} of tenant {tenant} revoked")


@contextlib.contextmanager
def open_key_file(path: Path | None) -> Iterator[TextIO | None]:
    """A new file that only the caller can read, made before the key is; removed again when making the key fails."""
    if path is None:
        yield None
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise error("input.invalid", f"cannot make key file {path}: {e.strerror}", "name a new file") from None
    with os.fdopen(fd, "w") as file:
        try:
            yield file
        except BaseException:
            path.unlink()
            raise


def keep_secret(box: Box, key: dict[str, Any], file: TextIO | None, path: Path | None) -> dict[str, Any]:
    """Write the secret to *file*, which is open at *path*, if there is one; what may then be shown of the key."""
    if file is None:
        return key
    file.write(f"{key['secret']}\n")
    file.flush()
    box.screen.note(f"key {key['id']} is in {path}")
    return {"id": key["id"], "file": str(path)}


def read_key(path: Path | None, stdin: TextIO) -> str | None:
    """The key in a file, or on stdin when *path* is ``-``. Raises ``input.invalid``."""
    if path is None:
        return None
    try:
        text = stdin.readline() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise error("input.invalid", f"cannot read key file {path}: {e}", "") from None
    if not text.strip():
        raise error("input.invalid", f"key file {path} is empty", "")
    return text.strip()


def _id(row: Row) -> str:
    return str(row.get("id", ""))
