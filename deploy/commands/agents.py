"""`xnai agents`: who is alive on the bus, on whatever machine."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from xnai.deploy.output import show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.deploy.table import Cell
    from xnai.registry import Instance

_EXAMPLES = """\
examples:
  xnai agents
  xnai agents --tag fast --json
"""
_COLUMNS = ("AGENT", "VERSION", "INSTANCE", "HOST", "LEVEL", "RUNNING", "SLOTS", "ROLES", "SKILLS")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "agents",
        help="show who is alive on the bus",
        description=(
            "Show every running instance that holds an agent card, on whatever machine. With --json: a list "
            "of A2A agent cards; what an instance says of itself is in the parameters of our extension."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("agent", metavar="AGENT", nargs="?", help="only this one")
    parser.add_argument("--role", help="only those that also answer to this role")
    parser.add_argument("--skill", help="only those with this skill")
    parser.add_argument("--tag", help="only those with a skill that has this tag")


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus import open_bus
    from xnai.registry import open_registry

    async with open_bus() as bus, open_registry(bus) as registry:
        found = registry.find(
            agent=arguments.agent, role=arguments.role, skill=arguments.skill, tag=arguments.tag
        )
    found.sort(key=lambda instance: instance.key)
    if arguments.json:
        show([instance.card for instance in found], as_json=True)
    elif not found:
        show("Nobody is alive that is all of this.", as_json=False)
    else:
        from xnai.deploy.table import table

        table(map(_row, found), _COLUMNS, sys.stdout)
    return Status.DONE


def _row(instance: Instance) -> tuple[object, ...]:
    said = instance.presence
    return (
        said.agent,
        said.version,
        said.instance,
        said.host,
        _level(instance),
        said.running,
        said.concurrency,
        " ".join(said.roles) or None,
        " ".join(skill.id for skill in instance.card.skills),
    )


def _level(instance: Instance) -> Cell:
    from xnai.deploy.table import Cell
    from xnai.protocol.presence import Level

    level = instance.presence.level
    return Cell(str(level), "good" if level.reaches(Level.CONSUMING) else "warning")
