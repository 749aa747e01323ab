"""The kept lines of agents: those that stand there, and those that are added."""

from __future__ import annotations

import heapq
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import anyio

from xnai.deploy.supervisor.logfiles import Line, names, parse, path_of, versions

_LOOK_EVERY = 0.1


class Reader:
    """Reads what is added to one file, and goes on in the next when it is rotated away."""

    def __init__(self, file: Path, *, from_start: bool = False) -> None:
        self._path = file
        self._file: BinaryIO = file.open("rb")
        self._rest = b""
        self._began = 0 if from_start else self._file.seek(0, os.SEEK_END)
        self._first = _inode(self._file)

    def before(self) -> Iterator[Line]:
        """What stood there when it was opened, the oldest first; to be asked before `read`."""
        for place in self._older_files():
            with suppress(FileNotFoundError), place.open("rb") as file:  # it may be rotated just now
                is_first = _inode(file) == self._first
                for raw in file:
                    if is_first and file.tell() > self._began:
                        return
                    if (line := parse(raw)) is not None:
                        yield line
                if is_first:
                    return

    def read(self) -> list[Line]:
        """The lines that came since the last time."""
        found = self._whole_lines()
        for file in self._newer_files():
            found += self._whole_lines()  # what came just before it was rotated away
            self._file.close()
            self._file = file
            found += self._whole_lines()
        return found

    def close(self) -> None:
        self._file.close()

    def _newer_files(self) -> list[BinaryIO]:
        """Those behind the one that is open, in order."""
        ours, newer = _inode(self._file), list[BinaryIO]()
        for place in versions(self._path):
            try:
                file = place.open("rb")
            except FileNotFoundError:  # it is being rotated at this moment
                break
            if _inode(file) == ours:
                file.close()
                break
            newer.append(file)
        return newer[::-1]

    def _older_files(self) -> list[Path]:
        """The one that was open at first and those before it, in order; none if it is gone meanwhile."""
        places = versions(self._path)
        while places and not _is(places[0], self._first):
            del places[0]
        return places[::-1]

    def _whole_lines(self) -> list[Line]:
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [line for raw in whole if (line := parse(raw)) is not None]


def _is(place: Path, inode: int) -> bool:
    try:
        return place.stat().st_ino == inode
    except FileNotFoundError:
        return False


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino


class Tail:
    """The lines of all agents, or of one, from the moment at which it is opened."""

    def __init__(self, folder: Path, only: str | None) -> None:
        self._folder, self._only = folder, only
        self._readers = {name: Reader(path_of(folder, name)) for name in self._names()}

    def before(self) -> Iterator[Line]:
        """What stood there at that moment, in the order of time."""
        return heapq.merge(
            *(reader.before() for reader in self._readers.values()), key=lambda line: line.time
        )

    async def follow(self) -> AsyncIterator[Line]:
        """What is added since, also by agents that come later."""
        while True:
            for name in self._names():
                if name not in self._readers:
                    self._readers[name] = Reader(path_of(self._folder, name), from_start=True)
            for line in sorted(line for reader in self._readers.values() for line in reader.read()):
                yield line
            await anyio.sleep(_LOOK_EVERY)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def _names(self) -> list[str]:
        known = names(self._folder)
        return known if self._only is None else [name for name in known if name == self._only]
