"""`xnai task`: the story of a task."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from xnai.deploy.arguments import add_id
from xnai.deploy.output import say, show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.bus.finding import Found
    from xnai.deploy.rungs import Story
    from xnai.protocol.a2a import Task

_EXAMPLES = """\
examples:
  xnai task kX3jZr0cQe2vL8wq5tYb1A
  xnai task kX3jZr0cQe2vL8wq5tYb1A --json
"""
_COLUMNS = ("TIME", "AFTER", "WHAT", "ATTEMPT", "BY", "DETAILS")
_BELOW = ("SUB-TASK", "ID", "STATE", "ATTEMPT", "ERROR")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "task",
        help="tell the story of a task, and where it stands",
        description=(
            "Say in one line where a task that you sent stands and why; then its story: when it was stored, "
            "started, failed, handed back and so on, in which attempt and by whom; its sub-tasks; and what "
            "it has produced so far. With --json: the task as an A2A object; `xnai watch --json` has the "
            "events, `xnai tasks --json` the sub-tasks."
        ),
        epilog=_EXAMPLES,
    )
    add_id(parser)


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus import open_bus

    async with open_bus() as bus:
        if arguments.json:
            show(await bus.task(arguments.id), as_json=True)
            return Status.DONE
        from xnai.deploy.rungs import read_story

        story = await read_story(bus, await bus.found(arguments.id))
        task = await bus.blobs.whole_task(story.task)
    _tell(story, task)
    return Status.DONE


def _tell(story: Story, task: Task) -> None:
    from xnai.deploy.rungs import rungs, standing
    from xnai.deploy.stories import artifact_lines
    from xnai.deploy.table import table
    from xnai.deploy.units import span
    from xnai.protocol.timestamps import format_timestamp

    print(f"{_address(story.found)} {story.found.id} {standing(story)}")
    rows = rungs(story)
    began = rows[0].at if rows else 0.0
    cells = [
        (
            format_timestamp(rung.at),
            span(rung.at - began),
            rung.what,
            rung.attempt or None,
            rung.who,
            rung.words or None,
        )
        for rung in rows
    ]
    table(cells, _COLUMNS, sys.stdout)
    _tell_below(story)
    for artifact in task.artifacts:
        print(artifact_lines(artifact))


def _tell_below(story: Story) -> None:
    from xnai.deploy.commands.tasks import error_cell, state_cell
    from xnai.deploy.rungs import below_in_order
    from xnai.deploy.table import table

    if story.unknown:
        sys.stdout.flush()
        say(f"Its sub-tasks are not known here. {story.unknown}")
    if story.below:
        rows = [
            (
                f"{'  ' * (depth - 1)}{row.agent}.{row.skill}",
                row.id,
                state_cell(row),
                row.attempt or None,
                error_cell(row),
            )
            for depth, row in below_in_order(story)
        ]
        table(rows, _BELOW, sys.stdout)


def _address(found: Found) -> str:
    return f"{found.agent}.{found.skill}"
