"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from typing import Any

import msgspec


def show(value: Any, *, as_json: bool) -> None:
    """Print a result: as one line of JSON, or for people: text and bytes as they are, the rest as JSON."""
    if not as_json and isinstance(value, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(value)
    elif not as_json and isinstance(value, str):
        print(value)
    else:
        print(to_json(value))
    sys.stdout.flush()


def to_json(value: Any) -> str:
    """One line of JSON; bytes become base64."""
    return msgspec.json.encode(value).decode()


def say(text: str) -> None:
    """A message for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def complain(code: str, sentence: str) -> None:
    """What went wrong."""
    say(f"error[{code}]: {sentence}")
