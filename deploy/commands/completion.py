"""`xnai completion`: commands, options and addresses completed by the shell.

The shells ask `xnai` itself at each TAB, which takes a tenth of a second: so they complete what is installed
and what stands in the nearest xnai.toml. shtab would write scripts that grow old, argcomplete wants a hook in
each start, and both would leave the addresses to us.
"""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING, Any

from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.deploy.completing import Candidate

_EXAMPLES = """\
examples:
  xnai completion bash > ~/.local/share/bash-completion/completions/xnai
  xnai completion zsh > ~/.zfunc/_xnai      # a folder of $fpath, before compinit
  xnai completion fish > ~/.config/fish/completions/xnai.fish
"""
_FILES = "/files"  # instead of words: the shell's own completion of files

_BASH = """\
_xnai() {
    local IFS=$'\\n' words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    COMPREPLY=($("$1" completion bash --words "${words[@]/#/=}" 2>/dev/null))
    if [[ ${COMPREPLY[0]-} == /files ]]; then
        COMPREPLY=()
        compopt -o default 2>/dev/null
    elif [[ ${COMPREPLY[0]-} == *[.=] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _xnai xnai
"""
_ZSH = """\
#compdef xnai
_xnai() {
    local -a found
    found=("${(@f)$("${words[1]}" completion zsh --words "${(@)words[2,CURRENT]/#/=}" 2>/dev/null)}")
    if [[ $found[1] == /files ]]; then
        _files
    elif [[ ${found[1]%%:*} == *. ]]; then
        _describe -t words xnai found -S ''
    elif [[ -n $found[1] ]]; then
        _describe -t words xnai found
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _xnai "$@"
else
    compdef _xnai xnai
fi
"""
_FISH = """\
function __xnai_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l found ($words[1] completion fish --words =$words[2..] 2>/dev/null)
    if test "$found[1]" = /files
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c xnai -f -a '(__xnai_complete)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "completion",
        help="print what lets a shell complete our commands",
        description=(
            "Print a script after which bash, zsh or fish completes commands, options, and the agents and "
            "skills of the nearest xnai.toml."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("shell", metavar="SHELL", choices=tuple(_SCRIPTS), help="bash, zsh or fish")
    # Each behind an equals sign, so that none is taken for an option of this command.
    parser.add_argument("--words", nargs="*", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    from xnai.deploy.output import show

    if arguments.words is None:
        script = _SCRIPTS[arguments.shell]
        show(script if arguments.json else script.rstrip("\n"), as_json=arguments.json)
    else:
        print(*_lines(arguments.shell, [word[1:] for word in arguments.words]), sep="\n")
    return Status.DONE


def _lines(shell: str, words: list[str]) -> list[str]:
    """What the script of a shell reads: a word a line, and what it means where the shell shows that."""
    from xnai.deploy.completing import Files, complete

    found = complete(words, _parser(words))
    if isinstance(found, Files):
        return [_FILES]
    return [_line(shell, each) for each in found]


def _line(shell: str, candidate: Candidate) -> str:
    word, meaning = candidate.word, " ".join(candidate.meaning.split())
    if shell == "bash":  # which has taken `--option=value` apart
        return word.rpartition("=")[2]
    if shell == "zsh":
        word = word.replace("\\", "\\\\").replace(":", "\\:")
        return f"{word}:{meaning}" if meaning else word
    return f"{word}\t{meaning}" if meaning else word


def _parser(words: list[str]) -> argparse.ArgumentParser:
    """The parser of the command that the words name, or of all while they name none."""
    from xnai.deploy.cli import COMMANDS, Parser

    parser = Parser(prog="xnai")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    said = next((word for word in words[:-1] if not word.startswith("-")), None)
    for name in COMMANDS:
        if said in (None, name):
            importlib.import_module(f"{__package__}.{name}").add(commands)
    return parser
