"""A progress bar: one line, rewritten in place on a terminal, and not there otherwise."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

_WIDTH = 24
_ERASE = "\r\x1b[K"


class Bar:
    """Draws on `stream`. Use it as a context: at its end the bar is gone.

    Attributes:
        shown: whether `stream` is a terminal.
    """

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self.shown = stream.isatty()
        self._stream = stream

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._write(_ERASE)

    def draw(self, done: int, total: int, text: str) -> None:
        """Show how far it is."""
        full = _WIDTH * done // total if total else 0
        line = f"[{'#' * full}{'-' * (_WIDTH - full)}] {done}/{total} {text}"
        self._write(_ERASE + line[: shutil.get_terminal_size().columns - 1])

    def note(self, text: str) -> None:
        """Print a line that stays; the bar goes on below it."""
        self._write(_ERASE)
        print(text, file=self._stream, flush=True)

    def _write(self, text: str) -> None:
        if self.shown:
            self._stream.write(text)
            self._stream.flush()
