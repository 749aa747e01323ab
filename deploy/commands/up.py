"""`xnai up`: the broker and the agents of a folder, each a process of its own."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnai.deploy.output import say, show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.deploy.stack import Stack
    from xnai.deploy.starting import Starter

_EXAMPLES = """\
examples:
  xnai up            # in the folder of xnai.toml, or below it; Ctrl-C stops everything
  xnai up --detach   # returns once all agents take tasks; xnai down stops everything
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "up",
        help="bring the stack of this folder up",
        description=(
            "Start the broker and the agents of xnai.toml (without one: inference, curation, retrieval), and "
            "keep them running until SIGTERM or Ctrl-C. Prints `ready` once all agents take tasks. Where the "
            "stack is up already, what changed in xnai.toml is applied to the agents that it concerns."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("-d", "--detach", action="store_true", help="return once all agents take tasks")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="apply xnai.toml when it is saved, and restart agents with their sources",
    )
    parser.add_argument("--background", action="store_true", help=argparse.SUPPRESS)


async def run(arguments: argparse.Namespace) -> int:
    if arguments.detach:
        return await _run(arguments, None)
    from xnai.deploy.starting import open_starter

    async with open_starter(say) as starter:  # it imports while we do
        return await _run(arguments, starter)


async def _run(arguments: argparse.Namespace, starter: Starter | None) -> int:
    from xnai.bus.locating import STACK_FOLDER
    from xnai.deploy.environment import variables
    from xnai.deploy.folders import find_settings
    from xnai.deploy.stack import Stack
    from xnai.protocol.errors import InvalidArgument

    file = find_settings(Path.cwd())
    stack = Stack((file.parent if file else Path.cwd()) / STACK_FOLDER)
    if arguments.watch and file is None:
        raise InvalidArgument("There is no xnai.toml to watch, in this folder or above it.")
    if stack.holder() is not None:
        from xnai.deploy.settings import read_settings

        read_settings(file, variables())
        if arguments.watch:
            say("The stack is up already, and goes on as it was started: --watch is for its start.")
        return await _apply(stack, as_json=arguments.json)
    if starter is None:
        return await _detach(stack, arguments)
    from xnai.deploy.reading import read_plan
    from xnai.deploy.up import Up

    with stack.locked():
        read = partial(read_plan, starter, file)
        return await Up(
            await read(),
            stack,
            read=read,
            starter=starter,
            as_json=arguments.json or arguments.background,
            watched=file if arguments.watch else None,
            background=arguments.background,
        ).run()


async def _apply(stack: Stack, *, as_json: bool) -> int:
    """Let the supervisor that is up read its settings again."""
    from xnai.deploy.supervisor.asking import open_supervision
    from xnai.deploy.supervisor.orders import Changes

    async with open_supervision(stack.folder.parent) as supervisor:
        changes = await supervisor.ask("apply", None, Changes)
    show(changes if as_json else "\n".join(changes.lines()), as_json=as_json)
    return Status.FAILURE if changes.failed else Status.DONE


async def _detach(stack: Stack, arguments: argparse.Namespace) -> int:
    from xnai.deploy.supervisor.detaching import start

    options = [f"--{option}" for option in ("watch", "debug") if getattr(arguments, option)]
    said = await start(stack.folder.parent, *options)
    if isinstance(said, int):
        return said
    show(said if arguments.json else "ready", as_json=arguments.json)
    say(f"It goes on as process {stack.holder()}. Its logs: xnai logs. Its end: xnai down")
    return Status.FAILURE if "missing" in said else Status.DONE
