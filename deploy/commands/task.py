"""`xnai task`: where a task stands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from xnai.deploy.output import show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.bus import Bus
    from xnai.bus.finding import Found
    from xnai.protocol.a2a import Task

_EXAMPLES = """\
example:
  xnai task kX3jZr0cQe2vL8wq5tYb1A
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "task",
        help="say where a task stands",
        description="Say where a task that you sent stands, and what it has produced so far.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("id", metavar="ID", help="as printed by `xnai send`")


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus import open_bus

    async with open_bus() as bus:
        found = await bus.found(arguments.id)
        task = await bus.task(arguments.id)
        show(task if arguments.json else await _in_words(bus, found, task), as_json=arguments.json)
    return Status.DONE


async def _in_words(bus: Bus, found: Found, task: Task) -> str:
    from xnai.bus.pull import waiting_pulls
    from xnai.deploy.stories import artifact_lines, state_in_words
    from xnai.protocol.a2a import TaskState
    from xnai.protocol.names import LANES

    lines = [f"{found.agent}.{found.skill} {task.id} {state_in_words(task)}"]
    if task.status.state is TaskState.SUBMITTED and not await waiting_pulls(bus.api, found.agent, LANES):
        lines.append(
            f"Nobody takes tasks of {found.agent} now: it waits until the agent runs. Start it with: xnai run"
        )
    if found.queued and not task.status.state.terminal:
        lines.append(f"Its deadline is {found.queued[0].deadline}.")
    return "\n".join(lines + [artifact_lines(artifact) for artifact in task.artifacts])
