"""Help, topics, completion: what an operator reads before anything runs, and how fast it comes."""

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from bedsit.cli.main import COMMANDS
from bedsit.ipc.errors import CODES

Run = Callable[..., Any]


def find_verbs() -> Iterator[tuple[str, ...]]:
    """Every command there is."""
    for name, entry in COMMANDS.items():
        command = get_command(importlib.import_module(entry.module).app)
        yield from find_below((name,), command)


def find_below(words: tuple[str, ...], command: Any) -> Iterator[tuple[str, ...]]:
    """The verbs of a noun, and of a noun in it."""
    if not isinstance(command, TyperGroup):
        yield words
        return
    for name, inner in command.commands.items():
        yield from find_below((*words, name), inner)


VERBS = list(find_verbs())


def test_help_loads_nothing_heavy() -> None:
    """``bedsit --help`` imports none of torch, zmq, numpy, msgspec; nor pydantic and rich."""
    code = (
        "import sys, json\n"
        "from bedsit.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr))
    assert "typer" in loaded
    assert not loaded & {"torch", "zmq", "numpy", "msgspec", "pydantic", "rich", "psutil", "structlog", "asyncio"}


@pytest.mark.parametrize("words", [("ps",), ("tenant", "list"), ("status",)])
def test_daily_commands_load_none_of_what_the_box_runs_on(run_dir: Path, daemon: Any, words: tuple[str, ...]) -> None:
    """torch, zmq and numpy stay out of every command but ``infer``."""
    daemon.script |= {"ps": [], "tenant.list": [], "status": {}}
    code = (
        "import sys\n"
        "from bedsit.cli.main import main\n"
        f"try: main({list(words)!r})\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "heavy = {'torch', 'zmq', 'numpy', 'msgspec'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {"PATH": os.environ["PATH"], "BEDSIT_RUN_DIR": str(run_dir)}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)


def test_the_command_line_imports_only_the_wire() -> None:
    """Of bedsit, nothing but bedsit.ipc: daemon, router and probe are started as processes."""
    modules = [entry.module for entry in COMMANDS.values()]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "mine = {'.'.join(n.split('.')[:2]) for n in sys.modules if n.startswith('bedsit.')}\n"
        "assert mine == {'bedsit.cli', 'bedsit.ipc'}, mine"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_top_level_help_fits_on_a_screen(bedsit: Run) -> None:
    """At most 25 lines of at most 80 columns, examples first, every command named."""
    done = bedsit("--help")
    lines = done.stdout.rstrip("\n").splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    assert done.stdout.index("Examples:") < done.stdout.index("Commands:")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_help_without_a_topic_is_the_same(bedsit: Run) -> None:
    """``bedsit help`` and ``bedsit --help``, ``bedsit help ps`` and ``bedsit ps --help``."""
    assert bedsit("help").stdout == bedsit("--help").stdout
    assert bedsit("help", "tenant", "create").stdout == bedsit("tenant", "create", "--help").stdout


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_examples_that_it_understands(words: tuple[str, ...]) -> None:
    """What it does, examples of this very verb with options that it has, every option explained."""
    app = importlib.import_module(COMMANDS[words[0]].module).app
    command = get_command(app)
    root = typer.Context(command, info_name="bedsit")
    for word in words[1:]:
        assert isinstance(command, TyperGroup)
        command = command.commands[word]
    page = command.get_help(typer.Context(command, info_name=" ".join(words), parent=root))
    assert command.help
    examples = command.examples.strip().splitlines()
    assert examples
    own = " ".join((*words[:-1], command.name or "")) if len(words) > 1 else words[0]
    assert any(f"bedsit {own}" in line for line in examples) or command.hidden
    known = {option for param in command.params for option in param.opts}
    for line in examples:
        mine = line.split("|")[0].split("bedsit ")[-1].split()
        assert not {w.split("=")[0] for w in mine if w.startswith("--")} - known
    for param in command.params:
        assert getattr(param, "help", None) or getattr(param, "hidden", False), param.name
    assert "Options of every command:" in page


def test_exit_codes_are_all_documented(bedsit: Run) -> None:
    """Every exit code an error can end in is on the page, and every error code is next to its exit code."""
    page = bedsit("help", "exit-codes").stdout
    blocks = {}
    number = None
    for line in page.splitlines():
        head = line[:5].strip()
        number = int(head) if head.isdigit() and not line.startswith("      ") else number
        blocks[number] = blocks.get(number, "") + line + " "
    for code, kind in CODES.items():
        assert f" {code} " in blocks[kind.exit_code]


@pytest.mark.parametrize("topic", ["output", "environment"])
def test_topics_are_pages(bedsit: Run, topic: str) -> None:
    """Text on stdout, exit 0."""
    done = bedsit("help", topic)
    assert done.returncode == 0
    assert done.stdout.startswith(topic.capitalize())


def test_the_page_about_the_environment_names_what_is_read(bedsit: Run) -> None:
    """Each variable that the code looks at is documented."""
    page = bedsit("help", "environment").stdout
    folder = Path(importlib.import_module("bedsit.cli").__file__ or "").parent
    text = "\n".join(path.read_text() for path in folder.glob("*.py"))
    for name in ("BEDSIT_RUN_DIR", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "_BEDSIT_COMPLETE"):
        assert name in text
        assert name in page


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(bedsit: Run, shell: str) -> None:
    """And bash's is one that bash can read."""
    done = bedsit("completion", shell)
    assert done.returncode == 0
    assert "_BEDSIT_COMPLETE" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def complete(bedsit: Run, line: str, **env: str) -> list[str]:
    """What bash would offer at the end of *line*."""
    words = line.split(" ")
    done = bedsit(_BEDSIT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1), **env)
    assert done.stderr == ""
    return [word for word in done.stdout.split("\n") if word]


def test_tenants_models_and_keys_are_completed(bedsit: Run, daemon: Any) -> None:
    """Names that the daemon knows, by the verb that takes them."""
    daemon.script |= {
        "tenant.list": [{"name": "vision"}, {"name": "video"}, {"name": "audio"}],
        "model.list": [{"tenant": "vision", "name": "digits"}],
        "key.list": [{"id": "0a1b2c3d"}],
    }
    assert complete(bedsit, "bedsit tenant show vi") == ["vision", "video"]
    assert complete(bedsit, "bedsit infer vis") == ["vision/"]
    assert complete(bedsit, "bedsit infer vision/") == ["vision/digits"]
    assert complete(bedsit, "bedsit key revoke vision 0") == ["0a1b2c3d"]
    assert complete(bedsit, "bedsit tenant cr") == ["create"]
    assert "--memory" in complete(bedsit, "bedsit tenant create --")


def test_words_of_an_option_are_completed(bedsit: Run) -> None:
    """From the same list that they are checked by; no daemon is asked."""
    classes = ["realtime", "interactive", "batch"]
    assert complete(bedsit, "bedsit tenant create vision --class ") == classes
    assert complete(bedsit, "bedsit tenant set vision --class re") == ["realtime"]
    assert complete(bedsit, "bedsit model set vision/digits --priority ") == ["low", "normal", "high"]
    assert complete(bedsit, "bedsit tenant set vision --restart t") == ["transient", "temporary"]
    assert {"--min-share", "--idle", "--run-limit"} <= set(complete(bedsit, "bedsit tenant set vision --"))
    assert complete(bedsit, "bedsit tenant re") == ["restart"]
    assert complete(bedsit, "bedsit model rel") == ["release"]
    assert complete(bedsit, "bedsit model se") == ["set"]


def test_completion_offers_plain_names_only(bedsit: Run, daemon: Any) -> None:
    """What zsh gets it evaluates: nothing that a shell could run gets there, whoever answers on the socket."""
    daemon.script["tenant.list"] = [{"name": "$(reboot)"}, {"name": "a;b"}, {"name": "ok"}, {"name": 7}, "x", {}]
    assert complete(bedsit, "bedsit tenant show ") == ["ok"]


def test_completion_without_a_daemon_is_silence(bedsit: Run) -> None:
    """No daemon: nothing offered, nothing printed."""
    assert complete(bedsit, "bedsit tenant show v") == []


def test_completion_does_not_wait_for_a_daemon_that_hangs(bedsit: Run, run_dir: Path) -> None:
    """The budget ends it: a socket that accepts and never answers costs 200 ms, not the shell."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(run_dir / "admin.sock"))
        listener.listen(1)
        assert complete(bedsit, "bedsit tenant show v") == []
