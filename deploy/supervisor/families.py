"""Processes with those that they started: who they are, and what they hold of memory together."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")


class _Process(NamedTuple):
    pid: int
    parent: int
    session: int


def families(pids: Iterable[int]) -> dict[int, list[int]]:
    """Each of these processes, with those below it and those in a session that it leads.

    A session is not left by a process whose parent has died. What opens one of its own and loses its parent
    too, as a daemon does, is not found.
    """
    found = {pid: [pid] for pid in pids}
    known = {each.pid: each for each in _processes()}
    for each in known.values():
        head = _head(each, known, found)
        if head is not None and head != each.pid:
            found[head].append(each.pid)
    return found


def _head(process: _Process, known: Mapping[int, _Process], heads: Container[int]) -> int | None:
    """To which of `heads` a process belongs."""
    above: _Process | None = process
    for _ in range(len(known)):  # ids are used again while we read: the parents may stand in a circle
        if above is None:
            break
        for pid in (above.pid, above.session):
            if pid in heads:
                return pid
        above = known.get(above.parent)
    return None


def _processes() -> Iterator[_Process]:
    """All processes of this machine that can be seen."""
    if not (_PROC / "self" / "stat").exists():
        yield from _listed()
        return
    for name in filter(str.isdecimal, os.listdir(_PROC)):
        try:
            said = (_PROC / name / "stat").read_bytes()
        except OSError:  # it has just ended
            continue
        _, parent, _, session = said.rpartition(b") ")[2].split(maxsplit=4)[:4]
        yield _Process(int(name), int(parent), int(session))


def _listed() -> Iterator[_Process]:
    """The same where there is no /proc: a session is then the group of processes of whoever leads it."""
    said = subprocess.run(
        ["ps", "-ax", "-o", "pid=,ppid=,pgid="], capture_output=True, text=True, check=False
    ).stdout
    for line in said.splitlines():
        yield _Process(*map(int, line.split()))


def held(family: Iterable[int]) -> int:
    """Bytes of memory that these processes hold; what the first shares with others counts once."""
    first, *others = family
    return (resident(first) or 0) + sum(_own(pid) for pid in others)


def resident(pid: int) -> int | None:
    """Bytes of memory that a process holds; None if it has ended."""
    if (_PROC / "self" / "statm").exists():
        pages = _pages(pid)
        return pages[1] * os.sysconf("SC_PAGE_SIZE") if pages else None
    said = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return int(said) * 1024 if said.isdecimal() else None


def _own(pid: int) -> int:
    """What a process holds without the files that it has mapped, such as the program itself."""
    if pages := _pages(pid):
        return max(0, pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")
    return 0 if _PROC.is_dir() else resident(pid) or 0


def _pages(pid: int) -> list[int]:
    """Its size, what of that is resident, and what of that is shared, in pages; nothing if it has ended."""
    try:
        return [int(count) for count in (_PROC / str(pid) / "statm").read_bytes().split()]
    except (OSError, ValueError):
        return []
