"""`xnai join`: put this folder's agents on the broker of another machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from xnai.deploy.output import say, show
from xnai.deploy.statuses import Status

_EXAMPLES = """\
example:
  xnai keys invite --host 192.168.1.5     # where the broker is; prints one word
  xnai join -                             # on the other machine, in its folder; the word on standard input
  xnai up
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "join",
        help="put this folder's agents on the broker of another machine",
        description=(
            "Use an invitation, once: the supervisor, the people and the agents of this folder get keys, "
            "made here, and the broker that invited comes to know them. From then on `xnai up` starts the "
            "agents here on that broker."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "invitation", metavar="INVITATION", help="as printed by `xnai keys invite`; - reads it from stdin"
    )


async def run(arguments: argparse.Namespace) -> int:
    from xnai.deploy.environment import variables
    from xnai.deploy.folders import find_settings, stack_folder
    from xnai.deploy.identity.joining import from_text, join
    from xnai.deploy.settings import read_settings
    from xnai.deploy.stack import Stack
    from xnai.deploy.supervisor.agent import agent_name
    from xnai.protocol.errors import InvalidArgument

    word = arguments.invitation
    invitation = from_text(sys.stdin.read() if word == "-" else word)
    file = find_settings(Path.cwd())
    stack = Stack(stack_folder(Path.cwd()))
    if stack.holder() is not None:
        raise InvalidArgument(f"The stack in {stack.folder.parent} is up. Take it down first: xnai down")
    agents = list(read_settings(file, variables()).agents) if file else []
    with stack.locked():
        names = await join(stack.folder, agent_name(stack.folder), invitation, agents=agents)
    facts = {"url": invitation.url, "members": names}
    show(facts if arguments.json else f"known there: {', '.join(names)}", as_json=arguments.json)
    say(f"This folder has joined {invitation.url}. Start its agents: xnai up")
    return Status.DONE
