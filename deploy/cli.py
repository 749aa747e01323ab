"""The command `xnai`: reads the arguments, runs one command, makes a sentence and a status of its errors."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from xnai.deploy.output import complain, say
from xnai.deploy.statuses import Status, innermost, status_of
from xnai.protocol.errors import XnaiError

COMMANDS = (
    *("up", "down", "ps", "top", "logs", "restart", "scale", "run", "agents"),
    *("call", "send", "tasks", "task", "cancel", "watch", "ingest", "ask"),
    *("model", "keys", "join", "init", "doctor", "completion"),
)
_PACKAGE = "xnai.deploy.commands"


class Parser(argparse.ArgumentParser):
    """With the options that every command has; errors in our form."""

    def __init__(self, **options: Any) -> None:
        options |= {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "conflict_handler": "resolve",
            "allow_abbrev": False,
        }
        super().__init__(**options)
        self.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print JSON on stdout, nothing else",
        )
        self.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="log everything; show tracebacks"
        )

    def error(self, message: str) -> NoReturn:
        complain("usage", f"{message}. Try: {self.prog} --help")
        sys.exit(Status.USAGE)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point; ends the process with a status of `Status`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed, command = _read(words)
    debug = parsed.debug
    try:
        status = _run(command, parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    except Exception as error:  # the last place: whatever it is, a person gets one sentence
        status = _explain(innermost(error))
        if debug:
            logging.getLogger(__name__).error("this is where it comes from", exc_info=error)
    sys.exit(status)


def _read(words: list[str]) -> tuple[argparse.Namespace, ModuleType]:
    """The arguments, and the module of the command they name. Only what is needed is imported."""
    said = next((word for word in words if not word.startswith("-")), None)
    if said is not None and said not in COMMANDS:
        from xnai.protocol.names import nearest

        meant = nearest(said, COMMANDS)
        hint = f"did you mean {meant}?" if meant else f"known are {', '.join(COMMANDS)}."
        complain("usage", f"There is no command {said}: {hint}")
        sys.exit(Status.USAGE)
    parser = Parser(prog="xnai", description="Agents as processes, and durable tasks between them.")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    modules = {name: _module(name) for name in COMMANDS if said in (None, name) and _exists(name)}
    for module in modules.values():
        module.add(commands)
    parsed = parser.parse_args(words, argparse.Namespace(json=False, debug=False))
    if parsed.version:
        _print_version()
    if parsed.command is None:
        parser.print_help(sys.stderr)
        sys.exit(Status.USAGE)
    return parsed, modules[parsed.command]


def _exists(command: str) -> bool:
    return importlib.util.find_spec(f"{_PACKAGE}.{command}") is not None


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"{_PACKAGE}.{command}")


def _print_version() -> NoReturn:
    from importlib.metadata import version  # takes longer to import than most commands need

    print(version("xnai-agent-bus"))
    sys.exit(Status.DONE)


def _run(command: ModuleType, parsed: argparse.Namespace) -> int:
    from xnai.deploy.logs import log_to

    log_to(say, logging.DEBUG if parsed.debug else getattr(command, "LOG_LEVEL", logging.WARNING))
    if not inspect.iscoroutinefunction(command.run):
        return int(command.run(parsed))
    from xnai.deploy.loop import run

    return int(run(functools.partial(command.run, parsed)))


def _explain(error: BaseException) -> Status:
    if isinstance(error, XnaiError):
        complain(error.code, " ".join(str(error).split()))
        return status_of(error)
    if isinstance(
        error, BrokenPipeError
    ):  # whoever read our output has left; the flush at exit must not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.FAILURE
    if isinstance(error, OSError):
        complain("failure", f"{error}.")
        return Status.FAILURE
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    complain("unexpected", f"{' '.join(text.split())} (--debug shows where it comes from)")
    return Status.FAILURE


if __name__ == "__main__":
    main()
