"""The disk under the stack: its room, its speed, and whose it is."""

from __future__ import annotations

import errno
import itertools
import os
import pwd
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from xnai.deploy.doctor.finding import Case, Finding, fine, problem, warning
from xnai.deploy.units import size

_FULL, _LOW, _LOW_SHARE = 64 << 20, 1 << 30, 0.05
_FEW_FILES = 100  # that can still be made
_SLOW = 0.05  # seconds that a small write takes until it is safe
_WRITES, _BLOCK = 9, b"\0" * 4096
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS}
_MOST_LOOKED_AT = 20_000  # files of the stack


def space(case: Case) -> Iterator[Finding]:
    """Whether there is room: nats-server stops taking messages on a full disk until it is started again."""
    state = os.statvfs(case.disk)
    free, total = state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
    room = f"{size(free)} of {size(total)} are free where {case.disk} lies"
    do = "Make room, or move the project to another disk; then start the stack again."
    if free < _FULL:
        yield problem("disk_space", f"The disk is full: {room}.", do)
    elif free < _LOW or free < _LOW_SHARE * total:
        yield warning("disk_space", f"The disk is nearly full: {room}.", do)
    elif state.f_files and state.f_favail < _FEW_FILES:
        yield problem("disk_space", f"The disk takes {state.f_favail} more files only: {room}.", do)
    else:
        yield fine("disk_space", f"{room}.")


def speed(case: Case) -> Iterator[Finding]:
    """How long a small write takes until it is safe; says nothing where nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=case.disk) as file:
            seconds = statistics.median(_write(file.fileno()) for _ in range(_WRITES))
    except OSError:  # full or not ours, which other checks say
        return
    what = f"A small write to {case.disk} is safe after {seconds * 1000:.2g} ms"
    if seconds > _SLOW:
        do = (
            "Use a local disk, not a network or memory card one; until then keep sync_interval of [server] "
            'at "100ms" or above.'
        )
        yield warning("disk_speed", f"The disk is slow: {what[0].lower()}{what[1:]}.", do)
    else:
        yield fine("disk_speed", f"{what}.")


def _write(file: int) -> float:
    began = time.perf_counter()
    os.write(file, _BLOCK)
    os.fsync(file)
    return time.perf_counter() - began


def folder(case: Case) -> Iterator[Finding]:
    """Whether the stack's folder is ours, with all that is in it, and can be written."""
    check, place = "data_folder", case.disk
    if not place.is_dir():
        yield problem(
            check, f"{place} is no folder.", "Move it away: the stack keeps its data in a folder there."
        )
        return
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        writable = True
    except OSError as error:
        writable = error.errno not in _NOT_OURS
        if not writable:
            do = f"Make it writable for {_name(os.geteuid())}, or start `xnai` in another folder."
            yield problem(check, f"{place} cannot be written: {error.strerror}.", do)
    if case.folder.is_dir() and (found := _of_another(case.folder)):
        yield _foreign(*found, case.folder)
    elif writable:
        yield fine(check, f"{place} is ours.")


def _of_another(folder: Path) -> tuple[Path, int] | None:
    """The first file of the stack that another user owns, and that user's number."""
    below = (Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))
    for path in itertools.islice(itertools.chain((folder,), below), _MOST_LOOKED_AT):
        try:
            owner = path.lstat().st_uid
        except FileNotFoundError:  # it has just gone
            continue
        if owner != os.geteuid():
            return path, owner
    return None


def _foreign(path: Path, owner: int, folder: Path) -> Finding:
    us, them = _name(os.geteuid()), _name(owner)
    what = f"{path} belongs to {them}, and you are {us}"
    if os.geteuid() == 0:
        do = f"Start `xnai` as {them}: what root writes there, {them} cannot read."
        return warning("data_folder", f"{what}.", do)
    return problem("data_folder", f"{what}.", f"sudo chown -R {us} {folder}")


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:  # in a container the user may have no name
        return f"user {user}"
