"""The environment of the process: the one place of this package that reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

PREFIX = "XNAI_"
AT_THE_START = ("GLIBC_", "HOME", "LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "TZ")
"""How variables are called that the loader, the C library or Python read once, at their start."""
_OF_THE_SERVICE_MANAGER = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}


def variables() -> dict[str, str]:
    """Our own: those whose name begins with `XNAI_`."""
    return {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


def variable(name: str) -> str | None:
    """One that somebody else has set for us, such as the service manager."""
    return os.environ.get(name)


def for_child(extra: Mapping[str, str]) -> dict[str, str]:
    """What a child process gets: what we have and `extra`; what it prints comes at once.

    What the service manager wants to hear is for us to say.
    """
    ours = {name: value for name, value in os.environ.items() if name not in _OF_THE_SERVICE_MANAGER}
    return {**ours, "PYTHONUNBUFFERED": "1", **extra}


def adopt(extra: Mapping[str, str]) -> None:
    """Have these variables as well, as if this process had been started with them; not those AT_THE_START."""
    os.environ.update(extra)


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal whose user did not ask for plain text (https://no-color.org)."""
    return is_screen(stream) and not os.environ.get("NO_COLOR")


def is_screen(stream: TextIO) -> bool:
    """Whether `stream` is a terminal on which one can go back and write over what stands there."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
