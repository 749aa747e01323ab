"""`xnai cancel`: end a task of ours."""

from __future__ import annotations

import argparse
from typing import Any

from xnai.deploy.arguments import add_id
from xnai.deploy.output import show
from xnai.deploy.statuses import Status

_EXAMPLES = """\
example:
  xnai cancel kX3jZr0cQe2vL8wq5tYb1A
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "cancel",
        help="cancel a task",
        description="Cancel a task that you sent. Its agent has two seconds to stop.",
        epilog=_EXAMPLES,
    )
    add_id(parser)


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus import open_bus
    from xnai.deploy.stories import state_in_words
    from xnai.protocol.a2a import TaskState

    async with open_bus() as bus:
        outcome = await bus.cancel(arguments.id)
    show(outcome if arguments.json else f"{outcome.id} {state_in_words(outcome)}", as_json=arguments.json)
    return Status.DONE if outcome.status.state is TaskState.CANCELED else Status.FAILURE
