"""Many voices on one terminal: each line behind the padded name of who says it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from xnai.deploy.environment import wants_colour

OURSELVES = "xnai"
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
Keep = Callable[[str, str, str], None]
"""Gets a name, the label of one of its processes, and a line."""


class Console:
    """Prints lines of agents and our own, with `quiet_stdout` all on stderr, and hands each to `keep`.

    `labels` are those of the processes to come: the names are as wide as the longest from the first line.
    """

    def __init__(self, labels: Iterable[str], *, quiet_stdout: bool, keep: Keep) -> None:
        labels = [OURSELVES, *labels]
        self._names = list(dict.fromkeys(label.partition(".")[0] for label in labels))
        self._width = max(map(len, labels))
        self._quiet, self._keep = quiet_stdout, keep
        self.silent = False

    def line(self, label: str, kind: str, text: str) -> None:
        """Print what a process, `maths` or `maths.2`, said on `kind`, "stdout" or "stderr"."""
        name = label.partition(".")[0]
        self._keep(name, label, text)
        if not self.silent:
            stream = sys.stdout if kind == "stdout" and not self._quiet else sys.stderr
            print(f"{self._prefix(name, label, stream)} {text}", file=stream, flush=True)

    def say(self, text: str) -> None:
        """Print a message of our own."""
        self.line(OURSELVES, "stderr", text)

    def _prefix(self, name: str, label: str, stream: TextIO) -> str:
        self._width = max(self._width, len(label))
        prefix = f"{label:<{self._width}} |"
        if not wants_colour(stream):
            return prefix
        if name not in self._names:
            self._names.append(name)
        return f"\x1b[{_COLOURS[self._names.index(name) % len(_COLOURS)]}m{prefix}\x1b[0m"
