"""`xnai send`: store a task, or a batch of them, and print the ids."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from xnai.deploy.arguments import STDIN, add_order, duration, read_payload
from xnai.deploy.output import show
from xnai.deploy.statuses import Status, status_of
from xnai.protocol.errors import InvalidArgument, InvalidPayload, XnaiError

if TYPE_CHECKING:
    from xnai.bus import Bus

_PIECE = 1 << 16  # bytes that a pipe holds
_EXAMPLES = """\
examples:
  xnai send maths.double 21 --lane background
  xnai task $(xnai send maths.double 21)
  seq 1000 | xnai send maths.double --batch - --id monday > ids
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "send",
        help="store a task and print its id, without waiting",
        description=(
            "Store a task and print its id. Once that is printed the task is safe; see `xnai task`. A batch "
            "stores one task for each line of JSON, in their order, and ends at the first line that cannot "
            "be sent: those before it are stored, none behind it. With --id the tasks of a batch are ID-1, "
            "ID-2 and so on, by the numbers of their lines: sending it again adds only what is missing."
        ),
        epilog=_EXAMPLES,
    )
    add_order(parser)
    parser.add_argument(
        "--batch", metavar="FILE", help="take a payload from each line of a file of JSON lines; - reads stdin"
    )
    parser.add_argument(
        "--ttl", type=duration, metavar="TIME", help='deadline, for example "1h"; default: 3 d'
    )


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus import open_bus

    if arguments.batch is None:
        payload = read_payload(arguments.payload, arguments.file)
        async with open_bus() as bus:
            show(await _send(bus, arguments, payload, arguments.id), as_json=arguments.json)
    elif arguments.payload is not None or arguments.file is not None:
        raise InvalidArgument("Give PAYLOAD, --file or --batch, one of them.")
    else:
        return await _send_batch(arguments)
    return Status.DONE


async def _send(bus: Bus, arguments: argparse.Namespace, payload: object, id: str | None) -> str:
    from xnai.bus.bus import TASK_TTL

    ttl = arguments.ttl or TASK_TTL
    return await bus.send(arguments.to, payload, lane=arguments.lane, ttl=ttl, id=id)


async def _send_batch(arguments: argparse.Namespace) -> Status:
    """Send line by line: the second waits for the first, so that what is stored is always a beginning."""
    from xnai.bus import open_bus
    from xnai.deploy.bar import Bar

    with _opened(arguments.batch) as file, Bar() as bar:
        total, sent, draws = _count(file), 0, not sys.stdout.isatty()
        async with open_bus() as bus:
            async for number, line in _numbered(file):
                try:
                    id = f"{arguments.id}-{number}" if arguments.id else None
                    show(await _send(bus, arguments, _payload(line), id), as_json=arguments.json)
                except XnaiError as error:
                    bar.note(f"error[{error.code}]: Line {number}: {' '.join(str(error).split())}")
                    return status_of(error)
                sent += 1
                if draws:
                    bar.draw(sent, max(sent, total), "tasks")
    return Status.DONE


def _opened(name: str) -> BinaryIO:
    """The file of a batch; stdin stays open when it is closed."""
    try:
        return open(0, "rb", closefd=False) if name == STDIN else Path(name).open("rb")
    except OSError as error:
        raise InvalidArgument(f"{name} cannot be read: {error.strerror}.") from error


def _count(file: BinaryIO) -> int:
    """How many tasks a file holds; 0 for a pipe, of which nobody knows."""
    if not file.seekable():
        return 0
    begin = file.tell()
    count = sum(not line.isspace() for line in file)
    file.seek(begin)
    return count


async def _numbered(file: BinaryIO) -> AsyncIterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers, as they come."""
    number = 0
    async for line in _lines(file):
        number += 1
        if line and not line.isspace():
            yield number, line


async def _lines(file: BinaryIO) -> AsyncIterator[bytes]:
    """Those of a file at once, those of a pipe when they come: the link to the broker lives meanwhile."""
    from anyio import wait_readable

    if file.seekable():
        for line in file:
            yield line
        return
    rest = b""
    while True:
        await wait_readable(file.fileno())
        some = os.read(file.fileno(), _PIECE)
        if not some:
            break
        *whole, rest = (rest + some).split(b"\n")
        for line in whole:
            yield line
    yield rest


def _payload(line: bytes) -> object:
    try:
        return json.loads(line.decode(), parse_constant=_refuse)
    except ValueError as error:
        raise InvalidPayload(f"It is no JSON: {error}.") from None


def _refuse(name: str) -> object:
    raise ValueError(f"{name} stands for no number")
