"""Many voices on one terminal: each line behind the padded name of who says it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from xnai.deploy.environment import wants_colour

OURSELVES = "xnai"
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


class Console:
    """Prints lines of agents and our own; with `quiet_stdout` all of them go to stderr."""

    def __init__(self, names: Iterable[str], *, quiet_stdout: bool) -> None:
        self._names = [OURSELVES, *names]
        self._width = max(map(len, self._names))
        self._quiet = quiet_stdout

    def line(self, name: str, kind: str, text: str) -> None:
        """Print what `name` said on `kind`, "stdout" or "stderr"."""
        stream = sys.stdout if kind == "stdout" and not self._quiet else sys.stderr
        print(f"{self._prefix(name, stream)} {text}", file=stream, flush=True)

    def say(self, text: str) -> None:
        """Print a message of our own."""
        self.line(OURSELVES, "stderr", text)

    def _prefix(self, name: str, stream: TextIO) -> str:
        prefix = f"{name:<{self._width}} |"
        if not wants_colour(stream):
            return prefix
        return f"\x1b[{_COLOURS[self._names.index(name) % len(_COLOURS)]}m{prefix}\x1b[0m"
