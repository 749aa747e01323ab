"""`xnai ps`: the processes of a stack."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnai.deploy.output import say, show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.deploy.supervisor.orders import Row
    from xnai.deploy.table import Cell

_EXAMPLES = """\
examples:
  xnai ps
  xnai ps --json
"""
_COLUMNS = ("NAME", "PID", "LEVEL", "UP", "MB", "DONE", "FAILED", "RUNNING", "RESTARTS", "LAST ERROR")


def add(commands: Any) -> None:
    commands.add_parser(
        "ps",
        help="show the processes of this folder's stack",
        description=(
            "Show the processes of the agents of this folder. LEVEL says how alive one is: process (it "
            "runs), link (it has its connection), consuming (it takes tasks), progressing (what it works on "
            "keeps to its limits); or dead, or waiting for what it needs. The supervisor is asked directly: "
            "it answers without the broker too."
        ),
        epilog=_EXAMPLES,
    )


async def run(arguments: argparse.Namespace) -> int:
    from xnai.deploy.supervisor.asking import view

    seen = await view(Path.cwd())
    print_rows(seen.rows, as_json=arguments.json)
    if not seen.linked:
        say("The broker does not answer the supervisor: what the processes say of themselves is missing.")
    return Status.DONE


def print_rows(rows: list[Row], *, as_json: bool) -> None:
    """Print them as a list in JSON, or as a table for people."""
    if as_json:
        show(rows, as_json=True)
        return
    from xnai.deploy.table import table
    from xnai.deploy.units import short_span

    cells = [
        (
            row.name,
            row.pid,
            _toned(row.level),
            short_span(row.uptime) if row.pid else None,
            round(row.memory_mb) if row.pid else None,
            row.done,
            row.failed,
            row.running,
            row.restarts,
            row.last_error,
        )
        for row in rows
    ]
    table(cells, _COLUMNS, sys.stdout)


def _toned(level: str) -> Cell:
    from xnai.deploy.table import Cell

    well = level in ("consuming", "progressing")
    return Cell(level, "good" if well else "bad" if level == "dead" else "warning")
