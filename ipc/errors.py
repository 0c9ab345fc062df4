"""Every error of bedsit: one small tree, one stable code each.

    BedsitError
    ├── InvalidRequest     the caller's input is wrong; repeating it will not help
    ├── NotFound           no such object
    ├── AlreadyExists      the name is taken
    ├── PermissionDenied   wrong key, wrong user
    ├── WrongState         the object exists but is not in a state that allows this
    ├── ResourceExhausted  a limit or the box's capacity is used up; waiting may help
    ├── DeadlineExceeded   the caller's deadline passed
    ├── Cancelled          the caller withdrew the request
    ├── WorkerFailed       the tenant's own worker or model failed
    ├── Unavailable        a process of bedsit cannot be reached right now
    └── Internal           a bug in bedsit

The *code* (``tenant.not_found``) is the contract: wire messages, log fields, metric labels and exit codes all derive
from it. Messages are for people and may change.
"""

from collections.abc import Mapping
from typing import Any, Final


class BedsitError(Exception):
    """What went wrong (``message``), under a stable ``code``, and what to do about it (``hint``)."""

    exit_code = 1

    def __init__(self, code: str, message: str, hint: str = "", detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.hint = hint
        self.detail = dict(detail or {})

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" ({self.hint})" if self.hint else "")

    def to_wire(self) -> dict[str, Any]:
        """As a msgpack-able map; ``error_from_wire`` reads it back."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "detail": self.detail}


class InvalidRequest(BedsitError):
    """The caller's input is wrong; repeating it will not help."""

    exit_code = 2


class NotFound(BedsitError):
    """No such object."""

    exit_code = 4


class AlreadyExists(BedsitError):
    """The name is taken."""

    exit_code = 6


class PermissionDenied(BedsitError):
    """Wrong key, wrong user."""

    exit_code = 5


class WrongState(BedsitError):
    """The object exists but is not in a state that allows this."""

    exit_code = 3


class ResourceExhausted(BedsitError):
    """A limit or the box's capacity is used up; waiting may help."""

    exit_code = 7


class DeadlineExceeded(BedsitError):
    """The caller's deadline passed."""

    exit_code = 8


class Cancelled(BedsitError):
    """The caller withdrew the request."""

    exit_code = 130


class WorkerFailed(BedsitError):
    """The tenant's own worker or model failed."""


class Unavailable(BedsitError):
    """A process of bedsit cannot be reached right now."""

    exit_code = 69


class Internal(BedsitError):
    """A bug in bedsit: please report it."""


CODES: Final[Mapping[str, type[BedsitError]]] = {
    "arena.full": ResourceExhausted,
    "arena.in_use": WrongState,
    "artifact.missing": Internal,
    "bundle.invalid": InvalidRequest,
    "cgroup.refused": Internal,
    "config.invalid": InvalidRequest,
    "daemon.already_running": AlreadyExists,
    "daemon.unavailable": Unavailable,
    "deadline.exceeded": DeadlineExceeded,
    "device.busy": WrongState,
    "device.degraded": WrongState,
    "device.full": ResourceExhausted,
    "device.invalid": InvalidRequest,
    "device.moved": WrongState,
    "device.not_found": NotFound,
    "device.not_ready": WrongState,
    "disk.full": ResourceExhausted,
    "folder.unusable": InvalidRequest,
    "input.invalid": InvalidRequest,
    "internal": Internal,
    "jail.refused": Internal,
    "key.invalid": PermissionDenied,
    "key.not_found": NotFound,
    "limit.impossible": InvalidRequest,
    "model.exists": AlreadyExists,
    "model.failed": WorkerFailed,
    "model.load_failed": WorkerFailed,
    "model.moved": WrongState,
    "model.not_found": NotFound,
    "model.quarantined": WrongState,
    "model.timeout": WorkerFailed,
    "output.invalid": WorkerFailed,
    "output.too_small": InvalidRequest,
    "permission.denied": PermissionDenied,
    "pool.empty": ResourceExhausted,
    "queue.full": ResourceExhausted,
    "rate.limited": ResourceExhausted,
    "request.cancelled": Cancelled,
    "request.invalid": InvalidRequest,
    "router.restarted": Unavailable,
    "router.unavailable": Unavailable,
    "session.limit": ResourceExhausted,
    "snapshot.full": ResourceExhausted,
    "state.foreign": InvalidRequest,
    "tenant.busy": WrongState,
    "tenant.exists": AlreadyExists,
    "tenant.failed": WorkerFailed,
    "tenant.limit_too_low": InvalidRequest,
    "tenant.not_found": NotFound,
    "tenant.stopped": WrongState,
    "wire.malformed": InvalidRequest,
    "worker.crashed": WorkerFailed,
}

_MAX_TEXT: Final = 4096


def error(code: str, message: str, hint: str = "", **detail: Any) -> BedsitError:
    """The error of that code, in its class. An unknown code is a bug and raises KeyError."""
    return CODES[code](code, message, hint, detail)


def error_from_wire(fields: object) -> BedsitError:
    """Read an error off the wire. Never raises: what cannot be read becomes ``internal``."""
    if not isinstance(fields, Mapping):
        return Internal("internal", "the peer sent an unreadable error")
    code = fields.get("code")
    if not isinstance(code, str):
        return Internal("internal", "the peer sent an error without a code")
    detail = fields.get("detail")
    return CODES.get(code, BedsitError)(
        code,
        _text(fields.get("message")),
        _text(fields.get("hint")),
        detail if isinstance(detail, Mapping) else None,
    )


def _text(value: object) -> str:
    # Not str(value): the peer chose the value, and a list in a list in a list ... ends in RecursionError.
    return value[:_MAX_TEXT] if isinstance(value, str) else ""
