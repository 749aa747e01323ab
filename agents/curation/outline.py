"""The shape of a text: what every extractor yields and the chunker reads.

Offsets count code points of the text they belong to; `end` is exclusive.
"""

from __future__ import annotations

import msgspec


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """A heading where it stands in the text, its markup included.

    Attributes:
        start: offset of its first character.
        end: offset after its last character, an underline included.
        level: 1 for the highest.
        title: what it says, without markup, on one line.
    """

    start: int
    end: int
    level: int
    title: str


class Extract(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a document, and what is known of its structure.

    Attributes:
        text: the text in which all offsets count.
        title: what the document calls itself, or None.
        headings: in the order of the text, without overlap.
        blocks: spans that lose their sense when cut (code, comments), in order, without overlap.
    """

    text: str
    title: str | None = None
    headings: tuple[Heading, ...] = ()
    blocks: tuple[tuple[int, int], ...] = ()


def first_title(headings: tuple[Heading, ...]) -> str | None:
    """The title of the first of the highest headings, or None without any."""
    highest = min(headings, key=lambda heading: heading.level, default=None)
    return highest.title if highest is not None and highest.title else None
