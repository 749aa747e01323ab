"""`xnai send`: store a task and print its id."""

from __future__ import annotations

import argparse
from typing import Any

from xnai.deploy.arguments import add_order, duration, read_payload
from xnai.deploy.output import show
from xnai.deploy.statuses import Status

_EXAMPLES = """\
examples:
  xnai send maths.double 21 --lane background
  xnai task $(xnai send maths.double 21)
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "send",
        help="store a task and print its id, without waiting",
        description="Store a task and print its id. Once that is printed the task is safe; see `xnai task`.",
        epilog=_EXAMPLES,
    )
    add_order(parser)
    parser.add_argument(
        "--ttl", type=duration, metavar="TIME", help='deadline, for example "1h"; default: 3 d'
    )


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus import open_bus
    from xnai.bus.bus import TASK_TTL

    payload = read_payload(arguments.payload, arguments.file)
    async with open_bus() as bus:
        id = await bus.send(
            arguments.to, payload, lane=arguments.lane, ttl=arguments.ttl or TASK_TTL, id=arguments.id
        )
    show(id, as_json=arguments.json)
    return Status.DONE
