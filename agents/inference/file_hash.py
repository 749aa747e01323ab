"""The SHA-256 of a model file, computed once: five gigabytes take five to fifteen seconds."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

_BLOCK = 1 << 20
_FRESH = 1.0  # seconds in which a file may change again without a change of its times


class _Known(msgspec.Struct, frozen=True):
    """What a file was when it was hashed. Who changes it back to these times hides it: `ctime` tells most."""

    size: int
    mtime: int
    ctime: int
    sha256: str


def file_hash(path: Path, cache: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """The SHA-256 of a file in hexadecimal digits; remembered below `cache` until the file changes.

    `advance` hears how many bytes were read, after each part. Several processes may do this at once. A cache
    that cannot be written is no error.

    Raises:
        OSError: the file cannot be read.
    """
    before = path.stat()
    memory = cache / "hashes" / f"{before.st_dev}-{before.st_ino}.json"
    known = _recall(memory)
    if known is not None and known == _facts(before, known.sha256):
        advance(before.st_size)
        return known.sha256
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block))
        after = os.fstat(file.fileno())
    facts = _facts(after, digest.hexdigest())
    if facts == _facts(before, facts.sha256) and time.time() - after.st_mtime > _FRESH:
        _remember(memory, facts)
    return facts.sha256


def _facts(stat: os.stat_result, sha256: str) -> _Known:
    return _Known(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, sha256)


def _recall(memory: Path) -> _Known | None:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=_Known)
    except (OSError, msgspec.MsgspecError):  # never hashed, or the entry is damaged
        return None


def _remember(memory: Path, known: _Known) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=memory.parent, prefix=".", delete=False) as file:
            file.write(msgspec.json.encode(known))
        os.replace(file.name, memory)
    except OSError:  # it will be hashed again
        return
