"""`xnai init`: the first stack of somebody who has none."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from xnai.deploy.output import show
from xnai.deploy.statuses import Status
from xnai.protocol.errors import InvalidArgument, XnaiError

_EXAMPLES = """\
examples:
  xnai init
  xnai init my-agents
"""
_SETTINGS = """\
# A stack of agents: `xnai up` in this folder starts it. All keys stand in docs/configuration.md.
# Sizes are written as "1GiB", durations as "10s" or "7d".

# One table for each agent; its name is its address: `xnai call hello.greet World`.
[agents.hello]
module = "hello.py"             # a file beside this one, or "package.module", with ":name" behind it
# concurrency = 8               # how many tasks at once; 64 unless the agent says otherwise
# env = { TZ = "UTC" }          # variables for its process
# settings = { polite = true }  # handed to configure(settings, folder) of its module

# The agents of the project: documents taken in with `xnai ingest`, and asked with `xnai ask`.
# [agents.inference]
# [agents.curation]
# [agents.retrieval]
# [agents.inference.settings]
# model = "models/some-model.gguf"   # lets `xnai ask` answer in words

# The broker. Without this a nats-server of our own runs on a free port of this machine.
# [server]
# port = 4222
# sync_interval = "always"      # a power cut loses nothing, and storing takes longer
# url = "nats://10.0.0.5:4222"  # an outside broker; its token comes from XNAI_TOKEN

# What may be stored of each agent.
# [limits]
# queue = 100_000               # tasks that may wait
# log = "1GiB"
# blobs = "4GiB"                # large parts, of all agents together

# [keeper]
# kept = "7d"                   # how long the log of an ended task stays
"""
_AGENT = '''\
"""The first agent. `xnai call hello.greet World` asks it while the stack is up."""

from xnai.agents import Agent

agent = Agent("hello")


@agent.skill
async def greet(name: str) -> str:
    """A greeting for somebody."""
    return f"Hello, {name}!"
'''
_FILES = {"xnai.toml": _SETTINGS, "hello.py": _AGENT}


class AlreadyExists(XnaiError):
    """A file stands where one would be made."""

    code = "already_exists"


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "init",
        help="make a first stack: xnai.toml and an agent",
        description=(
            "Make a commented xnai.toml and an agent that greets, and say how to start and ask it. A file "
            "that is there already is left as it is, and then none is made."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", default=".", help="default: the working folder"
    )


def run(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder)
    made = [folder / name for name in _FILES]
    if there := next((file for file in made if file.exists() or file.is_symlink()), None):
        raise AlreadyExists(f"{there} is there already; nothing was made.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InvalidArgument(f"{folder} is no folder.") from None
    for file, text in zip(made, _FILES.values(), strict=True):
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    enter = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    start, ask = [*enter, "xnai up"], [*enter, "xnai call hello.greet World"]
    if arguments.json:
        show({"files": list(map(str, made)), "start": start, "ask": ask}, as_json=True)
    else:
        show(_in_words(made, start, ask), as_json=False)
    return Status.DONE


def _in_words(made: list[Path], start: list[str], ask: list[str]) -> str:
    lines = [
        f"Made {' and '.join(map(str, made))}. Start the stack, which goes on until Ctrl-C:",
        *(f"  {line}" for line in start),
        "Ask it from another terminal:",
        *(f"  {line}" for line in ask),
    ]
    return "\n".join(lines)
