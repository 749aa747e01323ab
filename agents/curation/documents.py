"""What curation reads: a document, or the reason why something is none."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

import msgspec

from xnai.agents.curation.extract import extract
from xnai.agents.curation.outline import Heading

_TITLE = 200  # what is kept of a title that is a whole paragraph


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One document, read and extracted.

    Attributes:
        source: names it for as long as it stays where it is: `docs/guide/install.md`, `pydoc:if`.
        title: what it calls itself, else the last part of its source.
        media_type: how its bytes were read.
        text: the extracted text; every offset counts code points of it.
        headings: in order, with offsets in the text.
        blocks: spans of the text that are better kept whole.
        sha256: of the original bytes.
        text_sha256: of the text in UTF-8.
    """

    source: str
    title: str
    media_type: str
    text: str
    headings: tuple[Heading, ...]
    blocks: tuple[tuple[int, int], ...]
    sha256: str
    text_sha256: str


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was asked for, or stood in a folder asked for, and is no document.

    Attributes:
        source: what it would have been called.
        code: stable, one of `hidden`, `other_type`, `binary`, `empty`, `too_large`, `not_utf8`, `unreadable`,
            `outside`, `read_already`, `same_name`, `bad_name`.
        reason: one sentence for a person.
    """

    source: str
    code: str
    reason: str


def decode(data: bytes, source: str) -> str | Skipped:
    """UTF-8, with or without a byte order mark. Anything else is skipped, naming the first bad byte."""
    if b"\0" in data:
        return Skipped(source=source, code="binary", reason="holds zero bytes, so it is no text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        return Skipped(source=source, code="not_utf8", reason=reason)


def document(source: str, data: bytes, media_type: str) -> Document | Skipped:
    """Decode and extract a document from its bytes. Never raises."""
    text = decode(data, source)
    if isinstance(text, Skipped):
        return text
    found = extract(text, media_type)
    if not found.text.strip():
        return Skipped(source=source, code="empty", reason="holds no text")
    return Document(
        source=source,
        title=(found.title or PurePosixPath(source).stem)[:_TITLE],
        media_type=media_type,
        text=found.text,
        headings=found.headings,
        blocks=found.blocks,
        sha256=hashlib.sha256(data).hexdigest(),
        text_sha256=hashlib.sha256(found.text.encode("utf-8", "surrogatepass")).hexdigest(),
    )
