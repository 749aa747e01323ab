"""What agents print, kept in `.xnai/logs/NAME.log`: one line each, behind its time and who said it.

    2026-11-21T09:30:00.123Z maths.2 | ready maths

A file that is full becomes `NAME.log.1`, that one `NAME.log.2`, and the oldest goes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from xnai.protocol.timestamps import format_timestamp

FOLDER = "logs"
_SUFFIX = ".log"


class Line(NamedTuple):
    """A kept line. `time` is ISO 8601 in UTC, so that it sorts as text."""

    time: str
    label: str
    text: str


class LogFiles:
    """The files of a stack, written by the one process that holds it."""

    def __init__(self, folder: Path, *, size: int, count: int, complain: Callable[[str], None]) -> None:
        self._folder, self._size, self._count, self._complain = folder, size, count, complain
        self._open: dict[str, BinaryIO] = {}
        self._broken = False

    def keep(self, name: str, label: str, text: str) -> None:
        """Add a line to the file of `name`. What cannot be kept is lost; that is said once."""
        line = f"{format_timestamp(time.time())} {label} | {text}\n".encode(errors="replace")
        try:
            self._write(name, line)
            self._broken = False
        except OSError as error:
            if not self._broken:
                self._broken = True
                self._complain(f"logs are not kept: {self._folder}: {error.strerror}")

    def close(self) -> None:
        """Close all of them; a later line opens its file again."""
        while self._open:
            self._open.popitem()[1].close()

    def _write(self, name: str, line: bytes) -> None:
        file = self._open.get(name) or self._opened(name)
        if file.tell() and file.tell() + len(line) > self._size:
            self._open.pop(name).close()
            self._rotate(name)
            file = self._opened(name)
        file.write(line)

    def _opened(self, name: str) -> BinaryIO:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(path_of(self._folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        file = open(handle, "ab", buffering=0)  # noqa: SIM115  # it stays open
        self._open[name] = file
        return file

    def _rotate(self, name: str) -> None:
        first = path_of(self._folder, name)
        older = [first, *(first.with_name(f"{first.name}.{number}") for number in range(1, self._count))]
        older[-1].unlink(missing_ok=True)
        for newer, place in reversed(list(pairwise(older))):
            with suppress(FileNotFoundError):
                newer.replace(place)


def path_of(folder: Path, name: str) -> Path:
    """The file that is written now."""
    return folder / f"{name}{_SUFFIX}"


def names(folder: Path) -> list[str]:
    """Whose lines are kept, in order."""
    return sorted(file.name.removesuffix(_SUFFIX) for file in folder.glob(f"*{_SUFFIX}"))


def versions(newest: Path) -> list[Path]:
    """A file and those that it was before, the newest first."""
    numbers = (file.name.rpartition(".")[2] for file in newest.parent.glob(f"{newest.name}.*"))
    older = sorted(int(number) for number in numbers if number.isdecimal())
    return [newest, *(newest.with_name(f"{newest.name}.{number}") for number in older)]


def parse(raw: bytes) -> Line | None:
    """A line of a file; None where it is none of ours."""
    said, _, rest = raw.decode(errors="replace").partition(" ")
    label, bar, text = rest.partition(" | ")
    return Line(said, label, text.rstrip("\n")) if bar else None
