"""`xnai watch`: the events of a task, those stored and those to come."""

from __future__ import annotations

import argparse
from typing import Any

from xnai.deploy.arguments import add_id
from xnai.deploy.output import show
from xnai.deploy.statuses import Status

_EXAMPLES = """\
examples:
  xnai watch kX3jZr0cQe2vL8wq5tYb1A
  xnai watch kX3jZr0cQe2vL8wq5tYb1A --after 117 --json
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "watch",
        help="follow a task until it ends",
        description=(
            "Print the events of a task that you sent, those stored and then those to come, until it ends. "
            "The exit status says how: 0 completed, 4 otherwise, 5 past its deadline. Ctrl-C stops watching."
        ),
        epilog=_EXAMPLES,
    )
    add_id(parser)
    parser.add_argument(
        "--after",
        type=int,
        default=0,
        metavar="N",
        help="only events beyond this sequence, the first number of a line",
    )


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus import open_bus
    from xnai.deploy.statuses import status_of
    from xnai.deploy.stories import event_line
    from xnai.protocol.a2a import Task, TaskState
    from xnai.protocol.events import as_exception

    status = Status.DONE
    async with open_bus() as bus:
        async for event in bus.subscribe(arguments.id, after=arguments.after):
            show(event if arguments.json else event_line(event), as_json=arguments.json)
            if isinstance(event.body, Task) and event.body.status.state is not TaskState.COMPLETED:
                status = status_of(as_exception(event.body))
    return status
