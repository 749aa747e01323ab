"""`xnai down`: take the stack of a folder down."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnai.deploy.output import complain, say, show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.deploy.stack import Stack

_PATIENCE = 120.0
_ASKING = 10.0
_TRY_AGAIN = 0.05
_EXAMPLES = """\
example:
  xnai down
"""


def add(commands: Any) -> None:
    commands.add_parser(
        "down",
        help="take this folder's stack down",
        description=(
            "Stop the agents of this folder, those first that need others, then the broker and the "
            "supervisor. Returns when all have left; where nothing is up there is nothing to do."
        ),
        epilog=_EXAMPLES,
    )


async def run(arguments: argparse.Namespace) -> int:
    import anyio

    from xnai.deploy.folders import stack_folder
    from xnai.deploy.stack import Stack, arguments_of

    stack = Stack(stack_folder(Path.cwd()))
    pid = stack.holder()
    if pid is None:
        show({"down": False} if arguments.json else "nothing is up", as_json=arguments.json)
        return Status.DONE
    await _ask(stack, pid)
    with anyio.move_on_after(_PATIENCE):
        while stack.holder() == pid or arguments_of(pid):  # noqa: ASYNC110  # of which nobody tells
            await anyio.sleep(_TRY_AGAIN)
        show({"down": True} if arguments.json else "down", as_json=arguments.json)
        return Status.DONE
    complain("failure", f"The stack in {stack.folder} is still up after {_PATIENCE:g} s, pid {pid}.")
    return Status.FAILURE


async def _ask(stack: Stack, pid: int) -> None:
    """Over the bus; where that does not work, by a signal to the process that holds the lock."""
    import os
    import signal
    from contextlib import suppress

    from xnai.deploy.supervisor.asking import open_supervision
    from xnai.protocol.errors import XnaiError

    try:
        async with open_supervision(stack.folder.parent) as supervisor:
            await supervisor.ask("down", None, type(None), timeout=_ASKING)
    except XnaiError as error:
        say(f"It cannot be asked, and gets a signal: {error}")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
