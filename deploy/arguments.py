"""What several commands take: a payload, a lane, a time, an id."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from xnai.deploy.units import read_duration
from xnai.protocol.errors import InvalidArgument
from xnai.protocol.names import LANES

STDIN = "-"


def duration(text: str) -> float:
    """For argparse: seconds, more than none."""
    try:
        seconds = read_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError("it must be more than 0 s")
    return seconds


def add_order(parser: argparse.ArgumentParser) -> None:
    """The options that describe a task: to whom, with what, on which lane, under which id."""
    parser.add_argument("to", metavar="AGENT.SKILL", help="whom to ask: maths.double, or tag:TAG.SKILL")
    parser.add_argument(
        "payload", metavar="PAYLOAD", nargs="?", help="JSON, or text if it is no JSON; - reads stdin"
    )
    parser.add_argument("--file", metavar="PATH", help="take the payload from a file; - reads stdin")
    parser.add_argument("--lane", choices=LANES, default="normal", help="default: normal")
    parser.add_argument("--id", help="the task's id: the same id is the same task, asked again or not")


def add_id(parser: argparse.ArgumentParser) -> None:
    """The id of a task. What we mint begins with no dash; one that was given may, and argparse wants --."""
    parser.add_argument(
        "id", metavar="ID", help="as printed by `xnai send`; behind -- where it begins with a dash"
    )


def read_payload(said: str | None, file: str | None) -> object:
    """The payload that the arguments ask for: JSON, or text if it is none, or bytes if it is no text either.

    Raises:
        InvalidArgument: there are two of them, or the file cannot be read.
    """
    if said is not None and file is not None:
        raise InvalidArgument("Give PAYLOAD or --file, not both.")
    source = file if file is not None else said if said == STDIN else None
    if source is None:
        return None if said is None else _value(said)
    try:
        data = sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{source} cannot be read: {error.strerror}.") from error
    try:
        return _value(data.decode())
    except UnicodeDecodeError:
        return data


def _value(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(name: str) -> object:
    """NaN and Infinity are words in Python's reader only."""
    raise ValueError(name)
