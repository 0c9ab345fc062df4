"""``bedsit``: the command. Knows the names; each command is in the file of its noun, loaded when it is asked for."""

import importlib
import sys
from typing import Annotated, Final, NamedTuple

import typer
from typer._click.core import Command, Context  # typer vendors click; its minor version is pinned
from typer.core import TyperCommand
from typer.main import get_command

import bedsit
from bedsit.cli.command import INTERRUPTED, NoColor, Noun, Output, RunDir, Shared, define, format_help
from bedsit.cli.render import Screen
from bedsit.ipc.errors import InvalidRequest


class Entry(NamedTuple):
    """A command: the module with its ``app``, and what it does in a few words."""

    module: str
    summary: str


COMMANDS: Final = {
    "up": Entry("bedsit.cli.up", "start the box here and keep it running"),
    "down": Entry("bedsit.cli.down", "stop everything, tenants included"),
    "status": Entry("bedsit.cli.status", "is everything up, and which walls"),
    "doctor": Entry("bedsit.cli.doctor", "what this machine offers and lacks"),
    "tenant": Entry("bedsit.cli.tenant", "tenants and their limits"),
    "key": Entry("bedsit.cli.key", "what a program shows to be let in"),
    "model": Entry("bedsit.cli.model", "what tenants run"),
    "device": Entry("bedsit.cli.device", "what the box computes with"),
    "infer": Entry("bedsit.cli.infer", "send one request to a model"),
    "ps": Entry("bedsit.cli.ps", "what slots and tenants use, now or so far"),
    "top": Entry("bedsit.cli.top", "what slots and tenants use, now or so far"),
    "usage": Entry("bedsit.cli.usage", "what slots and tenants use, now or so far"),
    "logs": Entry("bedsit.cli.logs", "what a tenant's workers wrote"),
    "events": Entry("bedsit.cli.events", "what happened"),
    "backup": Entry("bedsit.cli.backup", "the box's state in one file, and back"),
    "restore": Entry("bedsit.cli.restore", "the box's state in one file, and back"),
    "upgrade": Entry("bedsit.cli.upgrade", "what the installed version would change"),
    "completion": Entry("bedsit.cli.completion", "teach a shell these names"),
    "help": Entry("bedsit.cli.topics", "help exit-codes, output, environment, or COMMAND"),
}
_EXAMPLES: Final = """\
Examples:
  bedsit up --detach                                  start the box
  bedsit tenant create vision --key-file vision.key   a tenant and its key
  bedsit model deploy vision ./digits                 a model, from a folder
  bedsit infer vision/digits -i image=image.npy       a request"""


class Root(Noun):
    """The top of the command: loads a command's file when it is asked for, so that each starts fast."""

    def get_help(self, ctx: Context) -> str:
        """The help page."""
        names: dict[str, str] = {}  # by summary: what belongs together is in one line
        for name in self.list_commands(ctx):
            summary = COMMANDS[name].summary
            names[summary] = f"{names[summary]}  {name}" if summary in names else name
        rows = [(terms, summary) for summary, terms in names.items()]
        return format_help(self.help or "", _EXAMPLES, "Commands:\n" + define(rows))

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """The command of that name, loaded."""
        del ctx
        known = self.commands.get(cmd_name)
        if type(known) is TyperCommand:  # a name in the list, nothing more yet
            known = get_command(importlib.import_module(COMMANDS[cmd_name].module).app)
            self.commands[cmd_name] = known
        return known


def _show_version(ctx: typer.Context, *, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        Screen().write_answer(f"bedsit {bedsit.__version__}")
        raise typer.Exit


def make_command() -> Command:
    """The whole command."""
    app = typer.Typer(
        name="bedsit",
        cls=Root,
        # Registers what answers the completion scripts. Its two options are taken out: `bedsit completion` is clearer.
        add_completion=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        invoke_without_command=True,
        subcommand_metavar="COMMAND ...",
    )

    @app.callback()
    def start(
        ctx: typer.Context,
        *,
        output: Output = None,
        run_dir: RunDir = None,
        no_color: NoColor = False,
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
        ] = False,
    ) -> None:
        """bedsit: many tenants' models on one box, one jailed room each."""
        del version
        ctx.obj = Shared(output, run_dir, no_color)
        if ctx.invoked_subcommand is None:
            Screen(out=sys.stderr).write_answer(ctx.get_help())
            raise typer.Exit(2)

    root = get_command(app)
    root.params = [p for p in root.params if p.name not in {"install_completion", "show_completion"}]
    if isinstance(root, Root):
        root.commands = {name: TyperCommand(name, help=entry.summary) for name, entry in COMMANDS.items()}
    return root


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["help"] and (len(args) == 1 or args[1] in COMMANDS):
        args = [*args[1:], "--help"]
    try:
        code = make_command().main(args, prog_name="bedsit", standalone_mode=False)
    except typer.TyperException as e:
        # What typer finds wrong with the words themselves: unknown command, missing argument, bad value.
        ctx = getattr(e, "ctx", None)
        where = ctx.command_path if ctx is not None else "bedsit"
        Screen().fail(InvalidRequest("request.invalid", e.format_message(), f"see: {where} --help"))
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
