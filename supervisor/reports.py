"""What workers report, made safe to show: the only place where a tenant's bytes become text of ours."""

from typing import Final

from bedsit.ipc.errors import CODES, BedsitError, WorkerFailed, error

_MAX_TEXT: Final = 2048


def clean_text(data: bytes) -> str:
    """A tenant's bytes as one bounded line of printable text."""
    text = data[:_MAX_TEXT].decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()


def read_failure(text: bytes) -> BedsitError:
    """What a worker says about a model that does not load. Its code counts only where it is the model's own fault."""
    code, _, message = text[: 2 * _MAX_TEXT].partition(b"\n")
    name = code.decode(errors="replace")
    known = CODES.get(name)
    allowed = name in ("bundle.invalid", "model.load_failed") or (known is not None and issubclass(known, WorkerFailed))
    hint = "see the tenant's own output: bedsit logs"
    return error(name if allowed else "model.load_failed", clean_text(message) or "the model does not load", hint)
