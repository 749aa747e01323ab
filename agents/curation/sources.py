"""From what was asked for to documents: files, folders, and Python's own `pydoc_data.topics`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

from xnai.agents.curation.documents import Document, Skipped, document
from xnai.protocol import XnaiError
from xnai.protocol.names import nearest

MAX_BYTES = 10_000_000
TOPICS = "pydoc_data.topics"
SCHEME = "pydoc:"

_MEDIA_TYPES = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd"), "text/markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "text/html"),
    **dict.fromkeys((".txt", ".text", ""), "text/plain"),
    ".rst": "text/x-rst",
}
# Folders full of other people's read-me files, or of nothing to read.
_IGNORED = frozenset(("node_modules", "__pycache__"))


class UnknownSource(XnaiError, LookupError):
    """A path or a topic that was asked for does not exist."""

    code = "unknown_source"


def read_sources(asked: Iterable[str], *, max_bytes: int = MAX_BYTES) -> Iterator[Document | Skipped]:
    """Read what was asked for, one document after the other, in a stable order.

    Args:
        asked: paths of files or folders (relative ones to the current folder), `pydoc_data.topics` or
            `pydoc:` for all its articles, or `pydoc:if` for one of them. A folder is read with all below it.
            A document is called by the name of the file or folder asked for and the path below that.
        max_bytes: larger files are skipped.

    Raises:
        UnknownSource: something asked for does not exist. Raised before anything is read.
    """
    return _read([_find(name) for name in asked], max_bytes)


def _find(name: str) -> Path | list[str]:
    if name in (TOPICS, SCHEME):
        return sorted(topics)
    if name.startswith(SCHEME):
        topic = name.removeprefix(SCHEME)
        if topic in topics:
            return [topic]
        meant = nearest(topic, topics)
        hint = f"; did you mean {SCHEME}{meant}?" if meant else ""
        raise UnknownSource(f"Python's manual has no topic {topic!r}{hint}")
    # Not resolved: a document keeps its name when a link that was asked for moves to another target.
    path = Path(os.path.abspath(os.path.expanduser(name)))
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        raise UnknownSource(f"there is no file or folder {name!r}") from error
    return path


def _read(found: Iterable[Path | list[str]], max_bytes: int) -> Iterator[Document | Skipped]:
    names: set[str] = set()
    for place in found:
        for item in _read_path(place, max_bytes) if isinstance(place, Path) else _read_topics(place):
            if isinstance(item, Document) and item.source in names:
                reason = "another document of this request has the same name"
                yield Skipped(source=item.source, code="same_name", reason=reason)
                continue
            names.add(item.source)
            yield item


def _read_topics(names: Iterable[str]) -> Iterator[Document | Skipped]:
    for name in names:
        yield document(SCHEME + name, topics[name].encode(), "text/x-rst")


def _read_path(place: Path, max_bytes: int) -> Iterator[Document | Skipped]:
    if not place.is_dir():
        # Asked for by name, so whatever it is called, it is meant to be text.
        yield _read_file(place, place.name, _media_type(place) or "text/plain", max_bytes)
        return
    for item in _walk(place):
        if isinstance(item, Skipped):
            yield item
        elif media_type := _media_type(item):
            yield _read_file(item, _source(place, item), media_type, max_bytes)
        else:
            reason = f"{item.suffix} is not Markdown, HTML, reStructuredText or text"
            yield Skipped(source=_source(place, item), code="other_type", reason=reason)


def _media_type(path: Path) -> str | None:
    return _MEDIA_TYPES.get(path.suffix.lower())


def _source(root: Path, path: Path) -> str:
    return path.relative_to(root.parent).as_posix()


def _walk(root: Path) -> Iterator[Path | Skipped]:
    """The files below a folder by name, depth first. Links inside it are followed, each file is read once."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    home = root.resolve()
    while waiting:
        path = waiting.pop()
        source = _source(root, path)
        try:
            real = path.resolve(strict=True)
            status = real.stat()
            inside = sorted(path.iterdir(), reverse=True) if stat.S_ISDIR(status.st_mode) else None
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            yield _unreadable(source, error)
            continue
        if reason := _refusal(source, real, home, seen=(status.st_dev, status.st_ino) in seen):
            yield reason
            continue
        seen.add((status.st_dev, status.st_ino))
        if inside is None:
            yield path
            continue
        hidden = [child for child in inside if child.name.startswith(".") or child.name in _IGNORED]
        yield from (_hidden(root, child) for child in reversed(hidden))
        waiting.extend(child for child in inside if child not in hidden)


def _hidden(root: Path, path: Path) -> Skipped:
    return Skipped(source=_printable(_source(root, path)), code="hidden", reason="is hidden")


def _refusal(source: str, real: Path, home: Path, *, seen: bool) -> Skipped | None:
    if _printable(source) != source:
        return Skipped(source=_printable(source), code="bad_name", reason="its name is not UTF-8")
    if not real.is_relative_to(home):
        reason = "is a link that leads out of the folder; ask for its target by name"
        return Skipped(source=source, code="outside", reason=reason)
    if seen:
        reason = "is a link to something read under another name"
        return Skipped(source=source, code="read_already", reason=reason)
    return None


def _read_file(path: Path, source: str, media_type: str, max_bytes: int) -> Document | Skipped:
    if _printable(source) != source:
        return Skipped(source=_printable(source), code="bad_name", reason="its name is not UTF-8")
    try:
        data = _read_bytes(path, max_bytes + 1)
    except OSError as error:
        return _unreadable(source, error)
    if data is None:
        return Skipped(source=source, code="unreadable", reason="is not a regular file")
    if len(data) > max_bytes:
        return Skipped(source=source, code="too_large", reason=f"is larger than {max_bytes:,} bytes")
    return document(source, data, media_type)


def _read_bytes(path: Path, limit: int) -> bytes | None:
    """At most so many bytes of a regular file, None if it is none. A named pipe would hold us: O_NONBLOCK."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        return file.read(limit) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _unreadable(source: str, error: Exception) -> Skipped:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "a loop of links"
    return Skipped(source=_printable(source), code="unreadable", reason=f"cannot be read: {reason}")


def _printable(source: str) -> str:
    """The name with escapes for bytes that are no UTF-8: those cannot travel as JSON."""
    return source.encode("utf-8", "backslashreplace").decode()
