"""`xnai logs`: what the agents of a stack have printed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnai.deploy.output import show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.deploy.supervisor.following import Tail
    from xnai.deploy.supervisor.logfiles import Line

_LINES = 100
_EXAMPLES = """\
examples:
  xnai logs maths
  xnai logs -f
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "logs",
        help="show what the agents of this folder printed",
        description=(
            "Show what the agents of this folder printed, the supervisor's own lines under the name xnai, in "
            "the order of time (UTC). They lie in .xnai/logs, and stay there when the stack is down."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("agent", metavar="AGENT", nargs="?", help="only this one")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", type=int, default=_LINES, metavar="N", help=f"the last N lines; default: {_LINES}"
    )


async def run(arguments: argparse.Namespace) -> int:
    from collections import deque
    from contextlib import closing

    from xnai.deploy.folders import stack_folder
    from xnai.deploy.supervisor.following import Tail
    from xnai.deploy.supervisor.logfiles import FOLDER, names
    from xnai.protocol.errors import InvalidArgument

    folder = stack_folder(Path.cwd()) / FOLDER
    known = names(folder)
    if arguments.lines < 0:
        raise InvalidArgument("--lines takes a number of lines, 0 or more.")
    if arguments.agent is not None and arguments.agent not in known:
        what = f"of {arguments.agent}, only of: {', '.join(known)}" if known else "yet"
        raise InvalidArgument(f"There are no logs {what}.")
    with closing(Tail(folder, arguments.agent)) as tail:
        for line in deque(tail.before(), maxlen=arguments.lines):
            _print(line, as_json=arguments.json)
        return await _follow(tail, as_json=arguments.json) if arguments.follow else Status.DONE


async def _follow(tail: Tail, *, as_json: bool) -> int:
    import anyio

    from xnai.deploy.signals import STOPPING, first_of

    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(*STOPPING) as signals:

            async def print_on() -> None:
                async for line in tail.follow():
                    _print(line, as_json=as_json)

            tasks.start_soon(print_on)
            await first_of(signals)
        tasks.cancel_scope.cancel()
    return Status.INTERRUPTED


def _print(line: Line, *, as_json: bool) -> None:
    if as_json:
        show(line._asdict(), as_json=True)
    else:
        show(f"{line.time} {line.label} | {line.text}", as_json=False)
