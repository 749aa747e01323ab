"""`xnai call`: ask, wait, print the answer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from xnai.deploy.arguments import add_order, duration, read_payload
from xnai.deploy.output import show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.bus import Bus
    from xnai.bus.sending import Order

_EXAMPLES = """\
examples:
  xnai call maths.double 21
  xnai call maths.count 3 --stream
  xnai call tag:fast.summarise "whoever is free"
  cat notes.txt | xnai call texts.summarise -
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "call",
        help="ask an agent and print its answer",
        description="Ask an agent and print its answer. Ctrl-C cancels the task.",
        epilog=_EXAMPLES,
    )
    add_order(parser)
    parser.add_argument(
        "--timeout",
        type=duration,
        metavar="TIME",
        help='deadline, for example 90 or "5m"; default: 30 s, stream 15 m',
    )
    parser.add_argument("--stream", action="store_true", help="print what the skill yields as it comes")


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus.bus import CALL_TIMEOUT, STREAM_TIMEOUT
    from xnai.deploy.reaching import open_bus_for
    from xnai.deploy.waiting import until_interrupted

    payload = read_payload(arguments.payload, arguments.file)
    timeout = arguments.timeout or (STREAM_TIMEOUT if arguments.stream else CALL_TIMEOUT)
    work = _stream if arguments.stream else _call
    async with open_bus_for(arguments.to) as bus:
        order = await bus.sender.order(
            arguments.to, payload, lane=arguments.lane, ttl=timeout, id=arguments.id
        )
        return await until_interrupted(bus, order.id, lambda: work(bus, order, as_json=arguments.json))


async def _call(bus: Bus, order: Order, *, as_json: bool) -> int:
    show(await bus.answer(await bus.run(order), Any), as_json=as_json)
    return Status.DONE


async def _stream(bus: Bus, order: Order, *, as_json: bool) -> int:
    """Text runs on in one piece, as it was generated; anything else stands on lines of its own."""
    runs_on = False
    async for chunk in bus.run_stream(order, Any):
        if runs_on := isinstance(chunk, str) and not as_json:
            print(chunk, end="", flush=True)
        else:
            show(chunk, as_json=as_json)
    if runs_on:
        show("", as_json=False)
    return Status.DONE
