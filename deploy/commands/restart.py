"""`xnai restart`: new processes for an agent, without a gap."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xnai.deploy.statuses import Status

_EXAMPLES = """\
example:
  xnai restart maths
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "restart",
        help="start an agent anew, without a gap",
        description=(
            "Start new processes of an agent of this folder, one after another: each takes tasks before the "
            "old one finishes its own and leaves. What is `alone` in xnai.toml leaves first."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("agent", metavar="AGENT", help="as in xnai.toml")


async def run(arguments: argparse.Namespace) -> int:
    from xnai.deploy.commands.ps import print_rows
    from xnai.deploy.supervisor.asking import open_supervision
    from xnai.deploy.supervisor.orders import Row

    async with open_supervision(Path.cwd()) as supervisor:
        rows = await supervisor.ask("restart", {"agent": arguments.agent}, list[Row])
    print_rows(rows, as_json=arguments.json)
    return Status.DONE
