"""Structured logs: journald's own protocol under systemd, JSON lines into a file or pipe, colours on a terminal.

Event names are constants in the past tense (``slot.died``); fields become ``BEDSIT_<FIELD>`` in the journal, so
``journalctl BEDSIT_TENANT=vision`` works. Tenants' output never passes through here.
"""

import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

_JOURNAL: Final = "/run/systemd/journal/socket"
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

Logger = structlog.typing.FilteringBoundLogger


def configure_log(level: str) -> None:
    """Choose the form by what stderr is. Call once, at start."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
    ]
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    if _stderr_is_journal():
        form: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, Journal()]
    elif sys.stderr.isatty():
        form = [stamp, structlog.dev.ConsoleRenderer()]
    else:
        form = [stamp, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *form],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_log() -> Logger:
    """The daemon's logger."""
    logger: Logger = structlog.get_logger()
    return logger


class Journal:
    """The last processor: one datagram per entry (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

    def __init__(self, address: str = _JOURNAL) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def __call__(self, _logger: object, _method: str, entry: MutableMapping[str, Any]) -> str:
        """Send the entry; a journal that does not take it loses it."""
        event = str(entry.pop("event", ""))
        priority = _PRIORITY.get(str(entry.pop("level", "info")), 6)
        fields = {"PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "bedsitd", "BEDSIT_EVENT": event}
        fields |= {f"BEDSIT_{key.upper()}": str(value) for key, value in entry.items()}
        rest = " ".join(f"{key}={value}" for key, value in entry.items())
        fields["MESSAGE"] = f"{event} {rest}".strip()
        with contextlib.suppress(OSError):
            self._socket.sendto(b"".join(map(_encode_field, fields, fields.values())), self._address)
        raise structlog.DropEvent

    def close(self) -> None:
        """Send no more."""
        self._socket.close()


def _encode_field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def _stderr_is_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not inode:
        return False
    status = os.fstat(2)
    return (str(status.st_dev), str(status.st_ino)) == (device, inode)
