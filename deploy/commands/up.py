"""`xnai up`: the broker and the agents of a folder, each a process of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xnai.deploy.statuses import Status

_EXAMPLES = """\
example:
  xnai up          # in the folder of xnai.toml, or below it; Ctrl-C stops everything
"""


def add(commands: Any) -> None:
    commands.add_parser(
        "up",
        help="bring the stack of this folder up",
        description=(
            "Start the broker and the agents of xnai.toml (without one: inference, curation, retrieval), and "
            "keep them running until SIGTERM or Ctrl-C. Prints `ready` once all agents take tasks."
        ),
        epilog=_EXAMPLES,
    )


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus.locating import STACK_FOLDER
    from xnai.deploy.environment import variables
    from xnai.deploy.folders import find_settings
    from xnai.deploy.settings import read_settings
    from xnai.deploy.stack import Stack
    from xnai.deploy.up import Up

    file = find_settings(Path.cwd())
    settings = read_settings(file, variables())
    stack = Stack((file.parent if file else Path.cwd()) / STACK_FOLDER)
    with stack.locked():
        await Up(settings, stack, as_json=arguments.json).run()
    return Status.DONE
