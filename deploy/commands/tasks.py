"""`xnai tasks`: which tasks there are, a page at a time."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from xnai.deploy.arguments import duration
from xnai.deploy.output import say, show
from xnai.deploy.statuses import Status
from xnai.protocol.listing import MOST_TASKS, USUAL_TASKS

if TYPE_CHECKING:
    from xnai.deploy.table import Cell
    from xnai.protocol.listing import TaskRow

_EXAMPLES = """\
examples:
  xnai tasks --agent maths --state failed --since 2h
  xnai tasks --state submitted --state working --all
  xnai tasks --limit 500 --json
"""
_PREFIX = "TASK_STATE_"
_STATES = ("submitted", "working", "completed", "failed", "canceled", "rejected")
_FILTERS = ("agent", "state", "context", "parent", "since", "older", "limit")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "tasks",
        help="list tasks: by agent, state, context and age",
        description=(
            "List the tasks that you sent, the newest first: those that wait, those being worked on, and "
            "those that ended, for as long as their logs are kept. A page shows the command for the next "
            "one, in which nothing is missing or shown twice, whatever is sent meanwhile. The index that "
            "answers is kept by `xnai up`. With --json: an object with `tasks` and `next`, the cursor of the "
            "page behind them, or null."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("--agent", metavar="AGENT", help="only those of this agent or role")
    parser.add_argument("--state", action="append", choices=_STATES, help="only in this state; repeatable")
    parser.add_argument("--context", metavar="ID", help="only those of this conversation")
    parser.add_argument("--parent", metavar="ID", help="the sub-tasks of this task, and theirs")
    parser.add_argument(
        "--since", type=duration, metavar="TIME", help='only those sent in the last, for example, "2h"'
    )
    parser.add_argument("--older", type=duration, metavar="TIME", help="only those sent longer ago than that")
    parser.add_argument(
        "--limit", type=int, default=USUAL_TASKS, metavar="N", help=f"of a page: at most {MOST_TASKS}"
    )
    parser.add_argument("--after", metavar="CURSOR", help="the page behind this one's end")
    parser.add_argument("--all", action="store_true", help="those of all senders")


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus import open_bus
    from xnai.protocol.a2a import TaskState

    async with open_bus() as bus:
        page = await bus.tasks(
            agent=arguments.agent,
            state=[TaskState(f"{_PREFIX}{state.upper()}") for state in arguments.state or ()],
            context=arguments.context,
            parent=arguments.parent,
            since=arguments.since,
            older=arguments.older,
            everybody=arguments.all,
            limit=arguments.limit,
            after=arguments.after,
        )
    if arguments.json:
        show(page, as_json=True)
        return Status.DONE
    _print(page.tasks, with_sender=arguments.all)
    if page.next is not None:
        sys.stdout.flush()
        say(f"More: {_again(arguments, page.next)}")
    return Status.DONE


def _print(rows: tuple[TaskRow, ...], *, with_sender: bool) -> None:
    if not rows:
        show("No task is all of this.", as_json=False)
        return
    from xnai.deploy.table import table
    from xnai.deploy.units import short_span
    from xnai.protocol.timestamps import parse_timestamp

    now = time.time()
    columns = ["TASK", "ID", *(["SENDER"] if with_sender else []), "STATE", "AGE", "ATTEMPT", "ERROR"]
    cells = [
        (
            f"{row.agent}.{row.skill}",
            row.id,
            *([row.sender] if with_sender else []),
            state_cell(row),
            short_span(now - parse_timestamp(row.sent)),
            row.attempt or None,
            error_cell(row),
        )
        for row in rows
    ]
    table(cells, columns, sys.stdout)


def state_cell(row: TaskRow) -> Cell:
    """The state of a task as a table shows it."""
    from xnai.deploy.table import Cell
    from xnai.protocol.a2a import TaskState

    words = row.state.removeprefix(_PREFIX).lower()
    if row.state is TaskState.COMPLETED:
        return Cell(words, "good")
    return Cell(words, "bad" if row.state.terminal else "plain")


def error_cell(row: TaskRow) -> str | None:
    """What went wrong, as a table shows it."""
    return f"{row.error.message} ({row.error.code})" if row.error else None


def _again(arguments: argparse.Namespace, cursor: str) -> str:
    """The command for the page behind."""
    words = ["xnai", "tasks"]
    for name in _FILTERS:
        said = getattr(arguments, name)
        if said is not None and (name != "limit" or said != USUAL_TASKS):
            for each in said if isinstance(said, list) else [said]:
                words += [f"--{name}", f"{each:g}" if isinstance(each, float) else str(each)]
    words += ["--all"] if arguments.all else []
    return shlex.join([*words, "--after", cursor])
