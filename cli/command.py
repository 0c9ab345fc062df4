"""What every command shares: the global options (accepted before and after the verb), help, errors, exit codes."""

import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, Final, NamedTuple, ParamSpec

import typer
from typer._click.core import Context, Parameter  # typer vendors click; its minor version is pinned
from typer.core import TyperCommand, TyperGroup

from bedsit.cli.box import DEFAULT_RUN_DIR, Box
from bedsit.cli.render import Declined, Format, Screen
from bedsit.ipc.errors import BedsitError

P = ParamSpec("P")

INTERRUPTED: Final = 130
_BROKEN_PIPE: Final = 141  # what a shell reports for SIGPIPE

Output = Annotated[
    Format | None, typer.Option("--output", "-o", help="How the answer is written; table unless told otherwise.")
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        readable=False,
        metavar="DIR",
        help=f"Where the box's sockets are; else $BEDSIT_RUN_DIR, else {DEFAULT_RUN_DIR}.",
    ),
]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colour, also on a terminal.")]
_SHARED: Final = {"output": Output, "run_dir": RunDir, "no_color": NoColor}


class Shared(NamedTuple):
    """The global options; None and False mean not given."""

    output: Format | None = None
    run_dir: Path | None = None
    no_color: bool = False

    def or_else(self, other: "Shared") -> "Shared":
        """These, and *other*'s where none was given."""
        return Shared(self.output or other.output, self.run_dir or other.run_dir, self.no_color or other.no_color)


class Verb(TyperCommand):
    """A command whose help is for reading: what it does, examples, then its arguments and options."""

    examples: str = ""

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """The arguments by their names, then where options go."""
        names = [_name(param) for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return [*names, "[OPTIONS]"]

    def get_help(self, ctx: Context) -> str:
        """The help page."""
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                record = (_name(param), getattr(param, "help", None) or "")
            (shared if param.name in _SHARED or param.name == "help" else own).append(record)
        parts = [self.get_usage(ctx), wrap(self.help or "")]
        if self.examples:
            parts.append("Examples:\n" + textwrap.indent(textwrap.dedent(self.examples).strip(), "  "))
        if own:
            parts.append("Arguments and options:\n" + define(own))
        parts.append("Options of every command:\n" + define(shared))
        return format_help(*parts)


class Noun(TyperGroup):
    """A group of verbs. Without a verb it shows its help and exits 2."""

    def get_help(self, ctx: Context) -> str:
        """The help page."""
        rows = [(name, summarise(command.help or "")) for name, command in self.commands.items() if not command.hidden]
        parts = [self.get_usage(ctx), wrap(self.help or ""), "Commands:\n" + define(rows)]
        return format_help(*parts)


def make_app() -> typer.Typer:
    """What a file with a single verb registers it with."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def make_noun(name: str, text: str) -> typer.Typer:
    """A group for the verbs of one noun."""
    app = typer.Typer(
        name=name,
        help=text,
        cls=Noun,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        subcommand_metavar="VERB ...",
        options_metavar="",
        invoke_without_command=True,
    )

    @app.callback()
    def show_help(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            Screen(out=sys.stderr).write_answer(ctx.get_help())
            raise typer.Exit(2)

    show_help.__doc__ = text
    return app


def verb(
    app: typer.Typer, name: str, *, examples: str = "", alias: str | None = None
) -> Callable[[Callable[Concatenate[Box, P], None]], Callable[Concatenate[Box, P], None]]:
    """Make a function of a Box the command *name*: gives it the global options, prints its errors, sets exit codes."""

    def register(function: Callable[Concatenate[Box, P], None]) -> Callable[Concatenate[Box, P], None]:
        run = _as_command(function)
        kind = type(f"{name.title()}Verb", (Verb,), {"examples": examples})
        app.command(name, cls=kind)(run)
        if alias is not None:
            app.command(alias, cls=kind, hidden=True)(run)
        return function

    return register


def _as_command(function: Callable[..., None]) -> Callable[..., None]:
    """*function* without its Box and with the context and the global options, for typer to look at."""

    @wraps(function)
    def run(**given: Any) -> None:
        ctx: typer.Context = given.pop("ctx")
        shared = Shared(**{name: given.pop(name) for name in _SHARED})
        _run(function, shared.or_else(ctx.obj or Shared()), given)

    own = list(inspect.signature(function).parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
    for name, annotation in _SHARED.items():
        default = False if name == "no_color" else None
        extra.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    parameters = [p.replace(kind=keyword) for p in own] + extra
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    del run.__wrapped__
    return run


def _run(function: Callable[..., None], shared: Shared, given: dict[str, Any]) -> None:
    screen = Screen(shared.output or Format.TABLE, no_color=shared.no_color)
    # The environment is read here and not by typer, which would let it win over the option before the verb.
    run_dir = shared.run_dir or (Path(os.environ["BEDSIT_RUN_DIR"]) if os.environ.get("BEDSIT_RUN_DIR") else None)
    with Box(run_dir, screen) as box:
        try:
            function(box, **given)
            sys.stdout.flush()
        except BedsitError as failure:
            screen.fail(failure)
            raise typer.Exit(failure.exit_code) from None
        except Declined:
            screen.note("not confirmed; nothing was changed")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            screen.note("interrupted")
            if box.changing:
                screen.note(f"{box.changing} goes on without us; follow it: bedsit events --follow")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read stdout has gone. Nothing more may be written to it, also not when Python flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_BROKEN_PIPE) from None


def format_help(*parts: str) -> str:
    """The parts of a help page with an empty line between."""
    return "\n\n".join(part for part in parts if part)


def _name(param: Parameter) -> str:
    return param.metavar or (param.name or "").upper()


def summarise(text: str) -> str:
    """The first sentence of a help text, without its full stop."""
    paragraph, _, _ = text.partition("\n\n")
    sentence, _, _ = " ".join(paragraph.split()).partition(". ")
    return sentence.rstrip(".")


def wrap(text: str) -> str:
    """Paragraphs filled to the width of the terminal; an indented one stays as it is."""
    width = min(shutil.get_terminal_size().columns, 100)
    blocks = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(block if block.startswith(" ") else textwrap.fill(block, width) for block in blocks)


def define(rows: list[tuple[str, str]]) -> str:
    """Terms and their meanings in two columns."""
    width = min(shutil.get_terminal_size().columns, 100)
    column = min(max((len(term) for term, _ in rows), default=0), 34) + 4
    lines = []
    for term, meaning in rows:
        wrapped = textwrap.wrap(meaning, max(20, width - column)) or [""]
        if len(term) > column - 4:
            lines.append(f"  {term}")
            head = " " * column
        else:
            head = f"  {term}".ljust(column)
        lines.append((head + wrapped[0]).rstrip())
        lines += [" " * column + more for more in wrapped[1:]]
    return "\n".join(lines)
