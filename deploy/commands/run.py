"""`xnai run`: one agent, served by this process."""

from __future__ import annotations

import argparse
import gc
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnai.deploy.arguments import duration
from xnai.deploy.output import say, show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    import anyio
    from anyio.abc import TaskGroup

    from xnai.agents import Agent, Worker
    from xnai.bus import Bus
    from xnai.deploy.assignment import Assignment

LOG_LEVEL = logging.INFO
_WAIT = 60.0
_EXAMPLES = """\
examples:
  xnai run examples/maths.py
  xnai run package.module:agent
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run one agent in this process",
        description=(
            "Run one agent until SIGTERM or Ctrl-C, then finish what it works on; a second signal ends it "
            "at once. Prints `ready NAME` once it takes tasks."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "target", metavar="TARGET", help="a Python file or a module, with :NAME if it has several agents"
    )
    parser.add_argument(
        "--wait",
        type=duration,
        default=_WAIT,
        metavar="TIME",
        help="how long to wait for a bus; default: 60 s",
    )
    parser.add_argument(
        "--health",
        type=int,
        metavar="PORT",
        help="answer GET /healthz on this port of 127.0.0.1; 0 takes a free one",
    )
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)


async def run(arguments: argparse.Namespace) -> int:
    gc.disable()  # importing makes nothing that could be collected: looking for it is a tenth of the start
    import anyio

    from xnai.agents import serve
    from xnai.bus.background import background_tasks
    from xnai.deploy.notify import notify
    from xnai.deploy.signals import STOPPING, first_of

    agent, assignment = _prepare(arguments)
    if assignment.roles is not None and set(agent.roles) != set(assignment.roles):
        show(" ".join(("declares", assignment.word, *agent.roles)), as_json=False)
        return Status.DONE  # it is started again, as whom the broker knows by then
    gc.freeze()
    gc.enable()
    leave = anyio.Event()
    async with AsyncExitStack() as stack:
        starting = stack.enter_context(anyio.CancelScope())
        signals = stack.enter_context(anyio.open_signal_receiver(*STOPPING))
        tasks = await stack.enter_async_context(background_tasks())

        async def listen() -> None:
            await first_of(signals)
            leave.set()
            if consuming:
                say(f"{agent.name} is leaving")
            else:
                starting.cancel()

        consuming = False
        tasks.start_soon(listen)
        bus = await _join(stack, agent, assignment, arguments.wait)
        worker = await stack.enter_async_context(serve(agent, bus, limits=assignment.limits))
        consuming = True
        tasks.start_soon(_leave_when_asked, worker, leave)
        await _tell_how_it_is(worker, tasks, arguments.health)
        show({"ready": agent.name} if arguments.json else f"ready {agent.name}", as_json=arguments.json)
        await leave.wait()
        notify("STOPPING=1")
    return Status.DONE


async def _leave_when_asked(worker: Worker, leave: anyio.Event) -> None:
    """Over the bus, as a signal would."""
    await worker.asked_to_leave.wait()
    say(f"{worker.agent.name} is asked to leave")
    leave.set()


async def _tell_how_it_is(worker: Worker, tasks: TaskGroup, port: int | None) -> None:
    """To the service manager, and to whoever asks at /healthz."""
    from xnai.agents.vitals import level_of
    from xnai.deploy.notify import keep_notifying, notify
    from xnai.protocol.presence import Level

    notify("READY=1")
    tasks.start_soon(keep_notifying, lambda: level_of(worker)[0].reaches(Level.CONSUMING))
    if port is not None:
        from xnai.deploy.health import serve_health

        listening = await tasks.start(serve_health, port, lambda: level_of(worker))
        say(f"{worker.agent.name} tells how it is at http://127.0.0.1:{listening}/healthz")


def _prepare(arguments: argparse.Namespace) -> tuple[Agent, Assignment]:
    """Load the agent, and tell it what the settings say."""
    from xnai.deploy.assignment import look_up, receive
    from xnai.deploy.loading import configure, load
    from xnai.protocol.errors import InvalidSettings

    assignment = receive(arguments.parent) if arguments.parent else None
    agent, module = load(arguments.target)
    if assignment is None:
        assignment = look_up(agent.name, Path.cwd())
    elif assignment.name != agent.name:
        raise InvalidSettings(f"agents.{assignment.name}: {arguments.target} is the agent {agent.name}.")
    agent.concurrency = assignment.concurrency or agent.concurrency
    configure(module, agent.name, assignment.settings, Path(assignment.folder))
    return agent, assignment


async def _join(stack: AsyncExitStack, agent: Agent, assignment: Assignment, wait: float) -> Bus:
    """Open the bus; one that is not up yet is waited for, and that is said once."""
    from xnai.bus import open_bus
    from xnai.deploy.identity.asking import introduce
    from xnai.protocol.errors import NoBus

    async def join(wait: float) -> Bus:
        if assignment.at is None:
            await introduce(agent.name, agent.roles, wait=wait)
        return await stack.enter_async_context(open_bus(assignment.at, name=agent.name, wait=wait))

    try:
        return await join(0.0)
    except NoBus as error:
        say(f"{agent.name} waits up to {wait:g} s for a bus. {error}")
    return await join(wait)
