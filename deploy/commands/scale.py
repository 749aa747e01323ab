"""`xnai scale`: how many processes an agent has."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xnai.deploy.statuses import Status

_EXAMPLES = """\
examples:
  xnai scale maths 3
  xnai scale maths 0
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "scale",
        help="set how many processes an agent has",
        description=(
            "Have so many processes of an agent of this folder, until the stack goes down or `replicas` "
            "changes in xnai.toml. Returns when the new ones take tasks, and those too many have left."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("agent", metavar="AGENT", help="as in xnai.toml")
    parser.add_argument("replicas", metavar="N", type=int, help="0 stops it")


async def run(arguments: argparse.Namespace) -> int:
    from xnai.deploy.commands.ps import print_rows
    from xnai.deploy.plan import MOST_REPLICAS
    from xnai.deploy.supervisor.asking import open_supervision
    from xnai.deploy.supervisor.orders import Row
    from xnai.protocol.errors import InvalidArgument

    if not 0 <= arguments.replicas <= MOST_REPLICAS:
        raise InvalidArgument(f"An agent may have 0 to {MOST_REPLICAS} processes.")
    payload = {"agent": arguments.agent, "replicas": arguments.replicas}
    async with open_supervision(Path.cwd()) as supervisor:
        rows = await supervisor.ask("scale", payload, list[Row])
    print_rows(rows, as_json=arguments.json)
    return Status.DONE
