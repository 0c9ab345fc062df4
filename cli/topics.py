"""``bedsit help``: pages about what no single command owns."""

from collections.abc import Callable
from typing import Annotated, Final

import typer
from typer.core import TyperGroup

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.ipc.errors import CODES, error
from bedsit.ipc.spelling import nearest

app = make_app()

_MEANINGS: Final = {
    0: "done",
    1: "failed; also: not confirmed, doctor found something missing, upgrade check or partition plan found a change",
    2: "wrong usage or input; also: a confirmation is needed and there is no terminal",
    3: "it exists, but is not in a state that allows this",
    4: "no such object",
    5: "not permitted",
    6: "it exists already, or is already running",
    7: "no capacity: a limit or the box is used up; waiting may help",
    8: "not done in time; it may still get done",
    69: "daemon or router cannot be reached",
    75: "bedsitd only: temporary failure, starting it again may help",
    78: "bedsitd and up: wrong configuration, starting it again will not help",
    130: "interrupted",
    141: "whoever read the output closed it",
}

_OUTPUT: Final = """\
Output

stdout holds the answer and nothing else; notes, progress, questions and errors go to stderr.

  -o table   the default. On a terminal: aligned, cut to its width, coloured. Elsewhere: one header line, columns
             separated by tabs, nothing cut, no colour.
  -o json    one document: {"api_version": "v1", "kind": KIND, "items": [...]} for lists, "item": {...} for one object;
             indented on a terminal.
  -o jsonl   one object per line, without the wrapping; the one for --follow.
  -o name    one name per line, for xargs. Models are TENANT/MODEL.

In JSON, times are RFC 3339 in UTC, sizes bytes (..._bytes), durations seconds (..._s), keys snake_case, and text is
ASCII with \\u escapes. Fields may be added within v1; none is removed or changes its meaning. Read a list's items by
key, not by position. With -o json or jsonl an error is one line of JSON on stderr:
{"error": {"code", "message", "hint", "exit_code"}}. The code (tenant.not_found) is stable, the message is not.

KIND: tenant key model device partition output slot usage status event log_line check backup change

Text that tenants wrote (logs, errors) may hold anything: what could steer a terminal is shown as \\x1b and the like.

A call that takes longer than a second tells its phases, with their times, on stderr.
Colour needs a terminal, or FORCE_COLOR or CLICOLOR_FORCE; NO_COLOR, TERM=dumb and --no-color switch it off."""

_ENVIRONMENT: Final = """\
Environment

  BEDSIT_RUN_DIR                 as --run-dir: where the box's sockets are; /run/bedsit
  NO_COLOR                       not empty: no colour
  FORCE_COLOR, CLICOLOR_FORCE    colour also where there is no terminal
  TERM=dumb                      no colour
  COLUMNS                        width of tables and help
  _BEDSIT_COMPLETE               set by the completion scripts

A key is never read from the environment or from an option's value: both can be seen by others. Use --key-file."""


def describe_exit_codes() -> str:
    """The exit codes with the error codes that lead to each."""
    lines = ["Exit codes", ""]
    by_exit: dict[int, list[str]] = {}
    for code, kind in CODES.items():
        by_exit.setdefault(kind.exit_code, []).append(code)
    for number, meaning in _MEANINGS.items():
        lines.append(f"  {number:>3}  {meaning}")
        names = sorted(by_exit.get(number, []))
        lines += ["         " + " ".join(names[start : start + 4]) for start in range(0, len(names), 4)]
    lines += ["", "The names are error codes: 'error: tenant.not_found: ...' ends with 4."]
    return "\n".join(lines)


TOPICS: Final[dict[str, Callable[[], str]]] = {
    "exit-codes": describe_exit_codes,
    "output": lambda: _OUTPUT,
    "environment": lambda: _ENVIRONMENT,
}


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    root = ctx.find_root().command
    verbs = list(root.commands) if isinstance(root, TyperGroup) else []
    return [name for name in [*TOPICS, *verbs] if name.startswith(incomplete)]


@verb(app, "help", examples="bedsit help exit-codes\nbedsit help tenant create")
def show_topic(
    box: Box,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help=f"{', '.join(TOPICS)}.", autocompletion=_complete)],
) -> None:
    """Show a topic, or a command's help."""
    if topic not in TOPICS:
        raise error(
            "request.invalid", f"no help on {topic!r}", nearest(topic, TOPICS) or f"topics: {', '.join(TOPICS)}"
        )
    box.screen.write_answer(TOPICS[topic]())
