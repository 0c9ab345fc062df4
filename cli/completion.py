"""``bedsit completion``: the script that teaches a shell our names."""

from enum import StrEnum
from typing import Annotated, Final

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb

app = make_app()

# The variable through which the script asks this program for completions; typer derives it from the program's name.
COMPLETE_VAR: Final = "_BEDSIT_COMPLETE"


class Shell(StrEnum):
    """The shells we have a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


# IFS and the word list are bash's; a slash is no word break, so TENANT/MODEL completes as one word.
_SCRIPTS: Final = {
    Shell.BASH: """_bedsit_completion() {
    local IFS=$'\\n'
    COMPREPLY=( $(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" _BEDSIT_COMPLETE=complete_bash \\
        "$1" 2>/dev/null) )
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]] && compopt -o nospace
    return 0
}
complete -o default -F _bedsit_completion bedsit""",
    Shell.ZSH: """#compdef bedsit
_bedsit_completion() {
  eval "$(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _BEDSIT_COMPLETE=complete_zsh bedsit 2>/dev/null)"
}
compdef _bedsit_completion bedsit""",
    Shell.FISH: """function _bedsit_completion
    env _BEDSIT_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \\
        _TYPER_COMPLETE_ARGS=(commandline -cp) bedsit 2>/dev/null
end
complete --command bedsit --arguments '(_bedsit_completion)'""",
}


@verb(
    app,
    "completion",
    examples="""
    eval "$(bedsit completion bash)"
    bedsit completion zsh > "${fpath[1]}/_bedsit"
    bedsit completion fish > ~/.config/fish/completions/bedsit.fish
    """,
)
def show_script(box: Box, shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print a shell's completion script. It completes commands, options, and the names of tenants, models and keys."""
    box.screen.write_answer(_SCRIPTS[shell])
